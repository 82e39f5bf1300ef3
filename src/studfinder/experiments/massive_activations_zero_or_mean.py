"""Are massive activations constants (Sun et al. 2024, table 3)?

The paper sets them, once, where they first appear, to zero or to their mean over other text, and finds that zero
destroys the model and the mean changes nothing: so they act as fixed biases. It also zeroes as many activations near
the median, without effect; there are no intervals. Here every entry that passes the rule (|a| > 100 and > 1,000 times
the median) in the massive dims after the first layer that has any is set to zero, or to its dim's mean over our default
prompts (apart for first tokens and others), on texts that are not those prompts. Controls, at the same tokens: as many
other dims set to zero, namely the next largest ones (which could matter), those nearest the median (the paper's), and
random ones. In the paper's code the hook works for two models by name, and its token is hard-coded; ours follows the
rule on each text.

Look at: zero against the mean, and the next largest dims.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from studfinder.errors import StudfinderError
from studfinder.experiments.dots import dots, point
from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.experiments.massive_onset import Onset, control_dims, onset_of
from studfinder.experiments.panel import Condition, Panel, change_table, panel_of, value_table
from studfinder.models import LM
from studfinder.records import Interval, Result
from studfinder.report.style import log_ticks, new_figure
from studfinder.report.words import count, number
from studfinder.sites import Site, tapped
from studfinder.stats import averaged

EXPERIMENT = Experiment(
    name="massive-activations/zero-or-mean",
    paper="2402.17762",
    shows="table 3",
    summary="Massive activations set to zero, or to their mean: are they constants?",
    needs="about 12 minutes and 1 GB with smollm2 on two cores",
    presets={
        "cpu": {"limit": 100, "windows": 24, "texts": "wikitext2,c4,proof", "tasks": "piqa,arc_easy"},
        "paper": {
            "limit": 100_000,
            "windows": 100_000,
            "texts": "wikitext2,c4,proof",
            "tasks": "boolq,piqa,winogrande,arc_easy,arc_challenge",
        },
    },
)
_ORIGINAL, ZERO, MEAN = "original", "massive to zero", "massive to their mean"


def run(bench: Bench) -> Outcome:
    """Five changes of the residual stream after one layer, each on the same items."""
    outcome = Outcome([])
    for name in bench.models:
        with bench.model(name) as lm:
            onset = onset_of(lm)
            controls = control_dims(lm, onset, bench.settings["seed"])
            variants = [
                Condition(_ORIGINAL),
                _variant(lm, ZERO, onset, onset.dims, 0.0),
                _variant(lm, MEAN, onset, onset.dims, None),
                *(_variant(lm, f"control: {kind} to zero", onset, dims, 0.0) for kind, dims in controls.items()),
            ]
            measures = [f"perplexity:{text}" for text in bench.settings["texts"].split(",") if text]
            measures += [f"tasks:{task}" for task in bench.settings["tasks"].split(",") if task]
            limits = {"tasks": bench.settings["limit"], "perplexity": bench.settings["windows"]}
            panel = panel_of(bench, lm, variants, measures, limits)
        _report(outcome, name, panel, onset, controls)
    return outcome


def _variant(lm: LM, label: str, onset: Onset, dims: Sequence[int], value: float | None) -> Condition:
    key = f"residual[{onset.layer}] {list(dims)} {onset.least:.6g} {value} {sorted(onset.means.items())}"
    return Condition(label, partial(_replaced, lm, onset, tuple(dims), value), key)


@contextmanager
def _replaced(lm: LM, onset: Onset, dims: tuple[int, ...], value: float | None) -> Iterator[None]:
    """For every massive entry after the onset layer, the entry itself (or its stand-in among `dims`, in order) is set
    to `value`; None is the mean of that dim. Padding stands on the right, where no real token sees it.

    Raises:
        StudfinderError: the model ran and nothing was massive.
    """
    calls = changed = 0

    def replace(hidden_BTC: torch.Tensor) -> torch.Tensor:
        nonlocal calls, changed
        massive_BTN = onset.massive(hidden_BTC)
        calls, changed = calls + 1, changed + int(massive_BTN.sum())
        new_BTC = hidden_BTC.clone()
        for place, (own, dim) in enumerate(zip(onset.dims, dims, strict=True)):
            there_BT = massive_BTN[..., place]
            first, other = onset.means[own] if value is None else (value, value)
            put_T = torch.full((hidden_BTC.shape[1],), other, dtype=hidden_BTC.dtype, device=hidden_BTC.device)
            put_T[0] = first
            new_BTC[..., dim] = torch.where(there_BT, put_T, hidden_BTC[..., dim])
        return new_BTC

    with tapped(lm, replace={Site("residual", onset.layer): replace}):
        yield
    if calls and not changed:
        raise StudfinderError(
            f"no activation after layer {onset.layer} was massive on these items", expected="at least one"
        )


def _report(outcome: Outcome, name: str, panel: Panel, onset: Onset, controls: dict[str, tuple[int, ...]]) -> None:
    what = (
        f"After layer {onset.layer}, dims {', '.join(map(str, onset.dims))}; means over our prompts: "
        + ", ".join(
            f"{dim}: {number(first)} at first tokens, {number(other)} at others"
            for dim, (first, other) in onset.means.items()
        )
        + ". Controls: "
        + "; ".join(f"{kind}: {', '.join(map(str, dims))}" for kind, dims in controls.items())
        + "."
    )
    paper = (
        "The paper (original, zero, mean), LLaMA2-7B: WikiText 5.47, inf, 5.47; mean of zero-shot tasks 68.95, 36.75, "
        "68.94. With BOS and other models (Owen et al. 2025) zero is harmless in 7 of 16."
    )
    outcome.tables.append(value_table(panel, f"{name}: scores", f"{what} {paper}"))
    outcome.tables.append(
        change_table(
            panel, f"{name}: change against the original", "Paired; perplexity as a factor, tasks as a difference."
        )
    )
    outcome.notes += _notes(name, panel)
    outcome.data[name] = {
        "labels": panel.labels[1:],
        "accuracies": panel.tasks,
        "changes": {measure: [point(i) for i in panel.changes(measure).values()] for measure in panel.measures},
    }


def _notes(name: str, panel: Panel) -> list[str]:
    notes = []
    for measure in panel.measures:
        if measure in panel.tasks:
            continue
        changes = panel.changes(measure)
        zero, mean = changes[ZERO], changes[MEAN]
        rest = {label: interval for label, interval in changes.items() if label.startswith("control")}
        moved = [label.removeprefix("control: ") for label, i in rest.items() if i.low > 1.01 or i.high < 0.99]
        notes.append(
            f"{name}: {measure.replace(':', ' on ')} becomes {_times(zero)} as large with the massive activations at "
            f"zero and {_times(mean)} with them at their mean{_back(panel, measure, zero)}. Of the controls, "
            f"{' and '.join(moved) if moved else 'none'} is shown to change it by more than 1 % (interval beyond that)."
        )
    if panel.tasks:
        parts = [f"{label} {_points(averaged([-lost for lost in panel.lost(label)]))}" for label in (ZERO, MEAN)]
        notes.append(
            f"{name}: change of the average accuracy over {count(len(panel.tasks), 'task')}: {'; '.join(parts)}."
        )
    return notes + [f"{name}: {measure} was not measured. {why}" for measure, why in panel.missing.items()]


def _back(panel: Panel, measure: str, zero: Interval) -> str:
    """How much of what zero costs the mean does not, in log perplexity."""
    if zero.low <= 1:
        return " (zero costs nothing that an interval would show)"
    nll = {label: np.array(panel.scores[label][measure].items["nll"]) for label in (_ORIGINAL, ZERO, MEAN)}
    share = averaged([nll[ZERO] - nll[MEAN]], [nll[ZERO] - nll[_ORIGINAL]])
    return f" (the mean keeps {_points(share)} of what zero loses in log perplexity)"


def _times(interval: Interval) -> str:
    return f"{number(interval.value)} times [{number(interval.low)}, {number(interval.high)}]"


def _points(interval: Interval) -> str:
    return f"{interval.value:.1%} [{interval.low:.1%}, {interval.high:.1%}]"


def draw(result: Result, width: float) -> dict[str, Figure]:
    """A row a change, a colour a text or task, for each model."""
    figures = {}
    wide = width > 600
    for place, (name, seen) in enumerate(result.data.items()):
        texts = [measure for measure in seen["changes"] if measure not in seen["accuracies"]]
        groups = [(texts, "perplexity / original", 1.0), (seen["accuracies"], "accuracy minus original", 0.0)]
        groups = [group for group in groups if group[0]]
        labels = [label if wide else label.replace("control: ", "") for label in seen["labels"]]
        figure = new_figure(width, 90 + (46 if wide else 92) * len(labels))
        panels = figure.subplots(*((1, len(groups)) if wide else (len(groups), 1)), squeeze=False, sharey=wide).flat
        for axes, (measures, label, none) in zip(panels, groups, strict=True):
            series = {measure.partition(":")[2]: seen["changes"][measure] for measure in measures}
            dots(axes, labels, series, none=none, log=none == 1.0)
            axes.set_xlabel(f"{label} ({name})" if wide else label)
            if none == 1.0:
                log_ticks(axes.xaxis, most=5)
            else:
                axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.legend(loc="lower right")
        figures["changes" if not place else f"changes-{place + 1}"] = figure
    return figures

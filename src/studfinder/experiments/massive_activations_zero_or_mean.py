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
from dataclasses import dataclass
from functools import partial

import torch

from studfinder.errors import StudfinderError
from studfinder.experiments.massive_onset import Onset, control_dims, onset_of
from studfinder.models import LM
from studfinder.records.config import option
from studfinder.report.words import count, number, times
from studfinder.sites import Site, tapped
from studfinder.studies import GridScores, ModelVariant
from studfinder.studies.experiment import Bench, Experiment, Outcome, StudyConfig


@dataclass(frozen=True, kw_only=True)
class ZeroOrMeanConfig(StudyConfig):
    """On which texts and tasks."""

    limit: int = option(100, help="Items of a task.", least=1)
    windows: int = option(24, help="Windows of a perplexity.", least=1)
    texts: tuple[str, ...] = option("wikitext2,c4,proof", help="Texts of perplexities.", commas=True)
    tasks: tuple[str, ...] = option("piqa,arc_easy", help="Public tasks.", commas=True)


EXPERIMENT = Experiment(
    name="massive-activations/zero-or-mean",
    paper="2402.17762",
    shows="table 3",
    summary="Massive activations set to zero, or to their mean: are they constants?",
    needs="about 12 minutes and 1 GB with smollm2 on two cores",
    presets={
        "cpu": ZeroOrMeanConfig(),
        "paper": ZeroOrMeanConfig(
            limit=100_000, windows=100_000, tasks=("boolq", "piqa", "winogrande", "arc_easy", "arc_challenge")
        ),
    },
)
_ORIGINAL, ZERO, MEAN = "original", "massive to zero", "massive to their mean"
_PAPER = (
    "The paper (original, zero, mean), LLaMA2-7B: WikiText 5.47, inf, 5.47; mean of zero-shot tasks 68.95, 36.75, "
    "68.94. With BOS and other models (Owen et al. 2025) zero is harmless in 7 of 16."
)


def run(bench: Bench, lm: LM) -> Outcome:
    """Five changes of the residual stream after one layer, each on the same items."""
    onset = onset_of(lm)
    controls = control_dims(lm, onset, bench.config.seed)
    variants = [
        ModelVariant(_ORIGINAL),
        _variant(lm, ZERO, onset, onset.dims, 0.0),
        _variant(lm, MEAN, onset, onset.dims, None),
        *(_variant(lm, f"control: {kind} to zero", onset, dims, 0.0) for kind, dims in controls.items()),
    ]
    scored = bench.grid(lm, variants, [*bench.each("perplexity", "texts"), *bench.each("tasks", "tasks")])
    means = (
        f"{dim}: {number(first)} at first tokens, {number(other)} at others"
        for dim, (first, other) in onset.means.items()
    )
    others = (f"{kind}: {', '.join(map(str, dims))}" for kind, dims in controls.items())
    note = (
        f"After layer {onset.layer}, dims {', '.join(map(str, onset.dims))}; means over our prompts: "
        f"{', '.join(means)}. Controls: {'; '.join(others)}. {_PAPER}"
    )
    return Outcome(
        [scored.scores_table("scores", note), scored.changes_table("change against the original")],
        [*_notes(scored), *scored.notes()],
        [scored.chart("changes")],
    )


def _variant(lm: LM, label: str, onset: Onset, dims: Sequence[int], value: float | None) -> ModelVariant:
    key = f"residual[{onset.layer}] {list(dims)} {onset.least:.6g} {value} {sorted(onset.means.items())}"
    return ModelVariant(label, partial(_replaced, lm, onset, tuple(dims), value), key)


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


def _notes(scored: GridScores) -> list[str]:
    notes = []
    for measure in scored.measures:
        if measure in scored.tasks:
            continue
        changes = scored.changes(measure)
        zero, mean = changes[ZERO], changes[MEAN]
        rest = {label: interval for label, interval in changes.items() if label.startswith("control")}
        moved = [label.removeprefix("control: ") for label, i in rest.items() if i.low > 1.01 or i.high < 0.99]
        back = " (zero costs nothing that an interval would show)"
        if zero.low > 1:
            back = f" (the mean keeps {scored.share(measure, ZERO, MEAN):.1%} of what zero loses in log perplexity)"
        notes.append(
            f"{measure.replace(':', ' on ')} becomes {times(zero)} as large with the massive activations at "
            f"zero and {times(mean)} with them at their mean{back}. Of the controls, "
            f"{' and '.join(moved) if moved else 'none'} is shown to change it by more than 1 % (interval beyond that)."
        )
    if scored.tasks:
        parts = [f"{label} {scored.average(label):.1%}" for label in (ZERO, MEAN)]
        notes.append(f"change of the average accuracy over {count(len(scored.tasks), 'task')}: {'; '.join(parts)}.")
    return notes

"""What breaks without the super weight, and how much of it the super activation mends (Yu et al. 2024, table 1).

The paper sets Llama-7B's super weight to zero, then instead 7,000 others, the largest there are, then the super weight
again while putting its activation back, and scores seven zero-shot tasks and two perplexities, without intervals. Here
"the super weight" is every proven one at once; the others are the largest by magnitude of every matrix in the blocks,
less the super weights, about 7,000 in all (the paper's share of each matrix, a millionth or one, is among the single
edits); "+SA" recomputes, in each text, the one largest output of the super weight's channel as the whole matrix would
give it. Every difference is paired within items. In the paper's own +SA row two of
seven tasks equal the original to two decimals, almost surely a copying error; the recovered share is therefore quoted
over the other five as well (31 % instead of 42 %).

What a single number does is asked apart, on our proof text: each proven weight alone, all together, the first one's
whole input neuron (column) and output channel (row), each beside a control of the same kind: a weight nearest in size
or in contribution, a column or row nearest in norm.

Look at: how far "prune SW" lies from "prune others", and whether +SA closes the gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from studfinder.edits import Weights, restore_output, top_fraction, zero
from studfinder.experiments.dots import dots, point
from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.experiments.panel import Condition, Panel, change_table, panel_of, value_table, with_edits
from studfinder.experiments.super_weight_units import add_units, count_of, draw_units, measure_units
from studfinder.experiments.weights import super_weights_of
from studfinder.models import LM
from studfinder.records import Interval, Result, SuperWeight, Table
from studfinder.report.style import log_ticks, new_figure
from studfinder.report.words import brief, number
from studfinder.stats import averaged

_TASKS = "lambada,piqa,arc_easy,arc_challenge,winogrande,hellaswag,sciq"
EXPERIMENT = Experiment(
    name="super-weight/ablation",
    paper="2411.07191",
    shows="table 1",
    summary="What breaks without the super weight, without 7,000 large others, and with its activation put back?",
    needs="about 10 minutes and 2 GB with smollm2 on two cores (plus the scan that finds the weights)",
    presets={
        "cpu": {"limit": 200, "windows": 32, "others": 7000, "tasks": _TASKS, "texts": "wikitext2,proof"},
        "paper": {"limit": 100_000, "windows": 100_000, "others": 7000, "tasks": _TASKS, "texts": "wikitext2,c4,proof"},
    },
)

_ORIGINAL, PRUNED, _OTHERS, RESTORED = "original", "prune SW", "prune others", "prune SW, +SA"


def run(bench: Bench) -> Outcome:
    """The paper's four rows, then the edits one by one."""
    outcome = Outcome([])
    for name in bench.models:
        with bench.model(name) as lm:
            weights, findings = super_weights_of(bench, lm)
            others = _others(lm, weights, bench.settings["others"])
            _add_panel(outcome, name, _panel(bench, lm, weights, others), weights, count_of(others))
            units = bench.once("one edit at a time", partial(measure_units, bench, lm, weights, findings, others))
            add_units(outcome, name, units)
    return outcome


def _others(lm: LM, weights: Sequence[SuperWeight], wanted: int) -> list[Weights]:
    """The largest weights of every matrix of the blocks, in all about as many as wanted, the super weights left out."""
    blocks = tuple(layer.block + "." for layer in lm.anatomy.layers)
    sizes = [p.numel() for n, p in lm.model.named_parameters() if n.startswith(blocks) and p.dim() >= 2]
    fraction = min(1.0, wanted / sum(sizes))
    return top_fraction(lm, fraction, keep={(weight.parameter, weight.index) for weight in weights})


def _panel(bench: Bench, lm: LM, weights: Sequence[SuperWeight], others: Sequence[Weights]) -> Panel:
    variants = [
        Condition(_ORIGINAL),
        with_edits(lm, PRUNED, zero(weights)),
        with_edits(lm, _OTHERS, zero(others)),
    ]
    if _restorable(weights):
        variants.append(with_edits(lm, RESTORED, (*zero(weights), *restore_output(lm, weights))))
    measures = [f"perplexity:{text}" for text in _listed(bench, "texts")]
    measures += [f"tasks:{task}" for task in _listed(bench, "tasks")]
    return panel_of(
        bench, lm, variants, measures, {"tasks": bench.settings["limit"], "perplexity": bench.settings["windows"]}
    )


def _restorable(weights: Sequence[SuperWeight]) -> bool:
    """Whether the super activations can be put back: what a fused expert gives cannot be replaced."""
    return all(weight.expert is None for weight in weights)


def _listed(bench: Bench, setting: str) -> list[str]:
    return [part for part in bench.settings[setting].split(",") if part]


def _add_panel(outcome: Outcome, name: str, panel: Panel, weights: Sequence[SuperWeight], others: int) -> None:
    paper = (
        "The paper, Llama-7B: average of seven tasks 70.11, prune SW 35.14, prune 7,000 others 69.22, prune SW +SA "
        "50.09 (two of its tasks equal the original to two decimals); WikiText-2 perplexity 5.67, 1211, 6.08, 721."
    )
    which = "SW: " + ", ".join(brief(weight) for weight in weights) + f"; others: the {others:,} largest by magnitude."
    outcome.tables.append(value_table(panel, f"{name}: scores", f"{which} {paper}"))
    outcome.tables.append(
        change_table(
            panel, f"{name}: change against the original", "Paired; perplexity as a factor, tasks as a difference."
        )
    )
    shares = _recovered(panel) if _restorable(weights) else {}
    if shares:
        outcome.tables.append(_share_table(name, shares))
    else:
        outcome.notes.append(f"{name}: +SA is left out: the output of a fused expert cannot be replaced.")
    outcome.notes += _panel_notes(name, panel, shares, others, len(weights))
    outcome.data.setdefault("models", {})[name] = _panel_data(panel)


def _recovered(panel: Panel) -> dict[str, Interval | None]:
    """What +SA brings back of what pruning took; None where pruning took nothing that an interval would show."""
    shares: dict[str, Interval | None] = {}
    if panel.tasks:
        lost, left = panel.lost(PRUNED), panel.lost(RESTORED)
        gone = averaged(lost).low > 0
        shares["average of tasks"] = averaged([a - b for a, b in zip(lost, left, strict=True)], lost) if gone else None
    for name in panel.measures:
        if name in panel.tasks:
            continue
        original, pruned, restored = (
            np.array(panel.scores[v][name].items["nll"]) for v in (_ORIGINAL, PRUNED, RESTORED)
        )
        gone = panel.changes(name)[PRUNED].low > 1
        shares[f"log {name.replace(':', ' ')}"] = averaged([pruned - restored], [pruned - original]) if gone else None
    return shares


def _share_table(name: str, shares: dict[str, Interval | None]) -> Table:
    return Table(
        title=f"{name}: share of the loss that +SA brings back",
        columns=("measure", "recovered"),
        rows=tuple((measure, share if share else "pruning took nothing") for measure, share in shares.items()),
        note="1: all of it. The paper: 0.42 of the accuracy; 0.31 without the two suspect tasks. Its perplexities give "
        "0.10 of the logarithm (WikiText-2).",
    )


def _panel_notes(name: str, panel: Panel, shares: dict[str, Interval | None], others: int, count: int) -> list[str]:
    notes = []
    for measure in panel.measures:
        if measure in panel.tasks:
            continue
        pruned, other = panel.changes(measure)[PRUNED], panel.changes(measure)[_OTHERS]
        how = "more" if pruned.low > other.high else "less" if pruned.high < other.low else "not clearly more"
        notes.append(
            f"{name}: without {'its super weight' if count == 1 else f'its {count} super weights'} "
            f"{measure.replace(':', ' on ')} is {_times(pruned)} as large, {how} than without the {others:,} "
            f"largest other weights ({_times(other)})."
        )
    for measure, share in shares.items():
        if share is not None:
            verdict = (
                "part" if share.low > 0 and share.high < 1 else "nothing certain" if share.low <= 0 else "part or all"
            )
            notes.append(
                f"{name}: putting the super activation back brings back {verdict} of the loss in {measure}: "
                f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]."
            )
    notes += [f"{name}: {measure} was not measured. {why}" for measure, why in panel.missing.items()]
    return notes


def _times(interval: Interval) -> str:
    return f"{number(interval.value)} times [{number(interval.low)}, {number(interval.high)}]"


def _panel_data(panel: Panel) -> dict[str, Any]:
    return {
        "labels": panel.labels[1:],
        "changes": {name: [point(i) for i in panel.changes(name).values()] for name in panel.measures},
        "accuracies": panel.tasks,
    }


def draw(result: Result, width: float) -> dict[str, Figure]:
    """Changes by measure, and edits one by one, for each model."""
    figures = {}
    for place, (name, seen) in enumerate(result.data["models"].items()):
        suffix = f"-{place + 1}" if place else ""
        figures[f"table-1{suffix}"] = _changes(name, seen, width)
        figures[f"units{suffix}"] = draw_units(name, seen["units"], width)
    return figures


def _changes(name: str, seen: dict[str, Any], width: float) -> Figure:
    wide = width > 600
    groups = [
        ([m for m in seen["changes"] if m not in seen["accuracies"]], "perplexity / original", 1.0, True),
        (seen["accuracies"], "accuracy minus original", 0.0, False),
    ]
    groups = [group for group in groups if group[0]]
    rows = [max(2, len(group[0])) for group in groups]
    figure = new_figure(width, 90 + 44 * (max(rows) if wide else sum(rows) + 2))
    grid = (1, len(groups)) if wide else (len(groups), 1)
    ratios = {} if wide else {"height_ratios": rows}
    for axes, (measures, label, none, log) in zip(
        figure.subplots(*grid, squeeze=False, gridspec_kw=ratios).flat, groups, strict=True
    ):
        series = {
            row: [seen["changes"][measure][place] for measure in measures] for place, row in enumerate(seen["labels"])
        }
        dots(axes, [measure.partition(":")[2] for measure in measures], series, none=none, log=log)
        axes.set_xlabel(f"{label} ({name})" if wide else label)
        if log:
            log_ticks(axes.xaxis, most=5)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3 if wide else 1)
    return figure

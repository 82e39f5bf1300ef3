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
from dataclasses import dataclass

from studfinder.edits import Weights, restore_output, top_fraction, zero
from studfinder.experiments.super_weight_units import add_units, count_of
from studfinder.experiments.weights import super_weights_of
from studfinder.models import LM
from studfinder.records import Interval, SuperWeight, Table
from studfinder.records.config import option
from studfinder.report.words import brief, times
from studfinder.stats import averaged
from studfinder.studies import GridScores, ModelVariant, with_edits
from studfinder.studies.experiment import Bench, Experiment, Outcome, StudyConfig

_TASKS = "lambada,piqa,arc_easy,arc_challenge,winogrande,hellaswag,sciq"


@dataclass(frozen=True, kw_only=True)
class AblationConfig(StudyConfig):
    """On which texts and tasks, and beside how many others."""

    limit: int = option(200, help="Items of a task.", least=1)
    windows: int = option(32, help="Windows of a perplexity.", least=1)
    others: int = option(7000, help="How many large others are taken away.", least=1)
    texts: tuple[str, ...] = option("wikitext2,proof", help="Texts of perplexities.", commas=True)
    tasks: tuple[str, ...] = option(_TASKS, help="Public tasks.", commas=True)


EXPERIMENT = Experiment(
    name="super-weight/ablation",
    paper="2411.07191",
    shows="table 1",
    summary="What breaks without the super weight, without 7,000 large others, and with its activation put back?",
    needs="about 10 minutes and 2 GB with smollm2 on two cores (plus the scan that finds the weights)",
    presets={
        "cpu": AblationConfig(),
        "paper": AblationConfig(limit=100_000, windows=100_000, texts=("wikitext2", "c4", "proof")),
    },
)

_PAPER = (
    "The paper, Llama-7B: average of seven tasks 70.11, prune SW 35.14, prune 7,000 others 69.22, prune SW +SA "
    "50.09 (two of its tasks equal the original to two decimals); WikiText-2 perplexity 5.67, 1211, 6.08, 721."
)
_ORIGINAL, PRUNED, _OTHERS, RESTORED = "original", "prune SW", "prune others", "prune SW, +SA"


def run(bench: Bench, lm: LM) -> Outcome:
    """The paper's four rows, then the edits one by one."""
    weights, findings = super_weights_of(bench, lm)
    others = _others(lm, weights, bench.config.others)
    variants = [ModelVariant(_ORIGINAL), with_edits(lm, PRUNED, zero(weights)), with_edits(lm, _OTHERS, zero(others))]
    restorable = all(weight.expert is None for weight in weights)  # what a fused expert gives cannot be replaced
    if restorable:
        variants.append(with_edits(lm, RESTORED, (*zero(weights), *restore_output(lm, weights))))
    scored = bench.grid(lm, variants, [*bench.each("perplexity", "texts"), *bench.each("tasks", "tasks")])
    note = f"SW: {', '.join(map(brief, weights))}; others: the {count_of(others):,} largest by magnitude. {_PAPER}"
    shares = _recovered(scored) if restorable else {}
    outcome = Outcome(
        [scored.scores_table("scores", note), scored.changes_table("change against the original")],
        [*_notes(scored, shares, count_of(others), len(weights)), *scored.notes()],
        [scored.chart("table-1", by="measure")],
    )
    if shares:
        outcome.tables.append(_share_table(shares))
    else:
        outcome.notes.insert(0, "+SA is left out: the output of a fused expert cannot be replaced.")
    add_units(outcome, bench, lm, weights, findings, others)
    return outcome


def _others(lm: LM, weights: Sequence[SuperWeight], wanted: int) -> list[Weights]:
    """The largest weights of every matrix of the blocks, in all about as many as wanted, the super weights left out."""
    blocks = tuple(layer.block + "." for layer in lm.anatomy.layers)
    sizes = [p.numel() for n, p in lm.model.named_parameters() if n.startswith(blocks) and p.dim() >= 2]
    fraction = min(1.0, wanted / sum(sizes))
    return top_fraction(lm, fraction, keep={(weight.parameter, weight.index) for weight in weights})


def _recovered(scored: GridScores) -> dict[str, Interval | None]:
    """What +SA brings back of what pruning took; None where pruning took nothing that an interval would show."""
    shares: dict[str, Interval | None] = {}
    if scored.tasks:
        lost, left = scored.lost(PRUNED), scored.lost(RESTORED)
        gone = averaged(lost).low > 0
        shares["average of tasks"] = averaged([a - b for a, b in zip(lost, left, strict=True)], lost) if gone else None
    for name in scored.measures:
        if name not in scored.tasks:
            gone = scored.changes(name)[PRUNED].low > 1
            shares[f"log {name.replace(':', ' ')}"] = scored.share(name, PRUNED, RESTORED) if gone else None
    return shares


def _share_table(shares: dict[str, Interval | None]) -> Table:
    return Table(
        title="share of the loss that +SA brings back",
        columns=("measure", "recovered"),
        rows=tuple((measure, share if share else "pruning took nothing") for measure, share in shares.items()),
        note="1: all of it. The paper: 0.42 of the accuracy; 0.31 without the two suspect tasks. Its perplexities give "
        "0.10 of the logarithm (WikiText-2).",
    )


def _notes(scored: GridScores, shares: dict[str, Interval | None], others: int, count: int) -> list[str]:
    notes = []
    for measure in scored.measures:
        if measure in scored.tasks:
            continue
        pruned, other = scored.changes(measure)[PRUNED], scored.changes(measure)[_OTHERS]
        how = "more" if pruned.low > other.high else "less" if pruned.high < other.low else "not clearly more"
        notes.append(
            f"without {'its super weight' if count == 1 else f'its {count} super weights'} "
            f"{measure.replace(':', ' on ')} is {times(pruned)} as large, {how} than without the {others:,} "
            f"largest other weights ({times(other)})."
        )
    for measure, share in shares.items():
        if share is not None:
            verdict = (
                "part" if share.low > 0 and share.high < 1 else "nothing certain" if share.low <= 0 else "part or all"
            )
            notes.append(
                f"putting the super activation back brings back {verdict} of the loss in {measure}: {share:.0%}."
            )
    return notes

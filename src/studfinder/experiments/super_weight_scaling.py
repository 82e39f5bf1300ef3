"""Does a larger super weight make a better model (Yu et al. 2024, figure 6 and table 5)?

The paper multiplies the super weight by factors from 0 to 3 and finds the average of seven zero-shot tasks to rise by
0.05 to 0.4 points at the best factor; the factor was chosen on the tasks that show the gain, and there are no
intervals. Here each of the first few super weights is scaled alone, and all of them together. Beside each stands the
weight nearest in size that shares no row or column with a super weight, scaled alike. A gain is cross-fitted: the
factor is chosen on every second window or item and judged on the others, and the other way around, so that each is
judged by a factor that it did not choose. Tasks, which cost most, are scored for the first weight and its control.

Look at: whether the cross-fitted gain's interval leaves out zero, and what its control gains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from studfinder.edits import scale
from studfinder.experiments.super_weight_scaling_tables import (
    ACCURACY,
    PERPLEXITY,
    Scaled,
    accuracies,
    accuracy_gains,
    held_out_gain,
    judged_accuracy,
    judged_perplexity,
    perplexities,
    perplexity_gains,
    scaling_chart,
    scaling_notes,
)
from studfinder.experiments.weights import SuperWeightConfig, controls_of, named, super_weights_of
from studfinder.measures.perplexity import windows_of
from studfinder.models import LM
from studfinder.records.config import option
from studfinder.studies import ModelVariant, ratio, swept, with_edits
from studfinder.studies.experiment import Bench, Experiment, Outcome

_TASKS = "lambada,piqa,arc_easy,arc_challenge,winogrande"


@dataclass(frozen=True, kw_only=True)
class ScalingConfig(SuperWeightConfig):
    """By which factors, on what."""

    limit: int = option(100, help="Items of a task.", least=1)
    windows: int = option(16, help="Windows of the perplexity.", least=2)
    factors: tuple[float, ...] = option(
        "0,0.2,0.5,0.8,1.2,1.5,2,3", help="What weights are multiplied by.", commas=True
    )
    amplified: tuple[float, ...] = option("1.2,1.5,2", help="The factors at which tasks are scored.", commas=True)
    alone: int = option(4, help="Super weights that are scaled alone.", least=1)
    tasks: tuple[str, ...] = option(_TASKS, help="Public tasks.", commas=True)
    text: str = option("wikitext2", help="The text of the perplexity.")


_PAPER = tuple(map(float, ["0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.8", "1.1", "1.2", "1.3", "1.5", "2", "3"]))
EXPERIMENT = Experiment(
    name="super-weight/scaling",
    paper="2411.07191",
    shows="figure 6 and table 5",
    summary="Does a larger super weight make a better model?",
    needs="about 25 minutes and 1 GB with smollm2 on one core (plus the scan that finds the weights)",
    presets={
        "cpu": ScalingConfig(),
        "paper": ScalingConfig(
            limit=100_000,
            windows=100_000,
            factors=_PAPER,
            amplified=_PAPER,
            tasks=(*_TASKS.split(","), "hellaswag", "sciq"),
        ),
    },
    claims=(ACCURACY, PERPLEXITY),
    spread=True,
)


def run(bench: Bench, lm: LM) -> Outcome:
    """Scale weights one by one and together, each beside its control; then score tasks of the first."""
    own = bench.config
    weights, findings = super_weights_of(bench, lm)
    controls = controls_of(lm, weights, findings)
    kinds: list[Scaled] = []
    for weight, control in list(zip(weights, controls, strict=True))[: own.alone]:
        kinds += [Scaled(named([weight]), weight), Scaled(f"  control of {named([weight])}", control)]
    if len(weights) > 1:
        kinds += [Scaled(f"all {len(weights)}", weights), Scaled(f"  controls of all {len(weights)}", controls)]
    factors = sorted({*own.factors} - {1.0})
    source = _sweep(bench, lm, kinds, factors)
    amplified = sorted({*own.amplified} - {1.0})
    variants = [ModelVariant("1")]
    variants += [
        with_edits(lm, f"{kind.label} x {factor:g}", scale(kind.target, factor))
        for kind in kinds[:2]
        for factor in amplified
    ]
    scored = bench.grid(lm, variants, bench.each("tasks", "tasks"))
    accuracy = {
        kind.label: [[-lost for lost in scored.lost(f"{kind.label} x {factor:g}")] for factor in amplified]
        for kind in kinds[:2]
    }
    held = {label: held_out_gain(gains) for label, gains in accuracy.items()}
    return Outcome(
        [
            perplexities(kinds, factors, source),
            perplexity_gains(kinds, factors),
            accuracies(scored, accuracy, amplified),
            accuracy_gains(accuracy, held, amplified),
        ],
        [*scaling_notes(kinds, factors), *scored.notes()],
        [scaling_chart(kinds, factors, accuracy, amplified)],
        claims=[
            judged_accuracy(scored, [held[kind.label][1] for kind in kinds[:2]], own.limit),
            judged_perplexity(kinds, own.windows),
        ],
    )


def _sweep(bench: Bench, lm: LM, kinds: Sequence[Scaled], factors: Sequence[float]) -> str:
    """Perplexity of every kind at every factor, in one reading; returns what the text is called."""
    longest = min(512, lm.anatomy.max_positions or 512)
    source, windows = windows_of(lm, bench.config.text, window=longest, limit=bench.config.windows)
    edits = [scale(kind.target, factor) for kind in kinds for factor in factors]
    effects = swept(bench, lm, "perplexity with scaled weights", windows, edits, bench.progress)
    for place, kind in enumerate(kinds):
        places = range(place * len(factors), (place + 1) * len(factors))
        kind.ratios = [ratio(effects, at) for at in places]
        kind.gains = [(effects.clean_nll - effects.nll[at]) / effects.tokens for at in places]
    return source

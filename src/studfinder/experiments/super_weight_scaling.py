"""Does a larger super weight make a better model (Yu et al. 2024, figure 6 and table 5)?

The paper multiplies the super weight by factors from 0 to 3 and finds the average of seven zero-shot tasks to rise by
0.05 to 0.4 points at the best factor; the factor was chosen on the tasks that show the gain, and there are no
intervals. Here all proven super weights are scaled together and every score is compared with factor 1 on the same
items. The gain is cross-fitted: the factor is chosen on every second item of each task and judged on the others, and
the other way around, so that each item is judged by a factor that it did not choose. Beside it stands the gain the
paper's way. Perplexity is swept too, next to the same factors on control weights nearest in size.

Look at: whether the cross-fitted gain's interval leaves out zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from studfinder.edits import scale
from studfinder.experiments.weights import controls_of, super_weights_of
from studfinder.models import LM
from studfinder.records import Cell, Chart, Comparison, Interval, Plot, Series, Table, point
from studfinder.records.config import option
from studfinder.report.words import brief
from studfinder.stats import averaged
from studfinder.studies import ModelVariant, ratio, swept, with_edits
from studfinder.studies.experiment import Bench, Experiment, Outcome, StudyConfig
from studfinder.texts import WHOLE, Text, corpus, encode, proof_text

_TASKS = "lambada,piqa,arc_easy,arc_challenge,winogrande"


@dataclass(frozen=True, kw_only=True)
class ScalingConfig(StudyConfig):
    """By which factors, on what."""

    limit: int = option(100, help="Items of a task.", least=1)
    windows: int = option(16, help="Windows of the perplexity.", least=1)
    factors: tuple[float, ...] = option(
        "0,0.2,0.5,0.8,1.2,1.5,2,3", help="What weights are multiplied by.", commas=True
    )
    tasks: tuple[str, ...] = option(_TASKS, help="Public tasks.", commas=True)
    text: str = option("wikitext2", help="The text of the perplexity.")


EXPERIMENT = Experiment(
    name="super-weight/scaling",
    paper="2411.07191",
    shows="figure 6 and table 5",
    summary="Does a larger super weight make a better model?",
    needs="about 15 minutes and 1 GB with smollm2 on two cores (plus the scan that finds the weights)",
    presets={
        "cpu": ScalingConfig(),
        "paper": ScalingConfig(
            limit=100_000,
            windows=100_000,
            factors=(0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.8, 1.1, 1.2, 1.3, 1.5, 2, 3),
            tasks=(*_TASKS.split(","), "hellaswag", "sciq"),
        ),
    },
)


SW, _CONTROLS = "super weights", "controls"


def run(bench: Bench, lm: LM) -> Outcome:
    """Score every factor on the same items; choose on one half, judge on the other."""
    weights, findings = super_weights_of(bench, lm)
    controls = controls_of(lm, weights, findings)
    factors = sorted({*bench.config.factors} - {1.0})
    source, windows = _windows(lm, bench.config.text, bench.config.windows)
    curves = {}
    for kind, target in ((SW, weights), (_CONTROLS, controls)):
        edits = [scale(target, factor) for factor in factors]
        effects = swept(bench, lm, f"perplexity with scaled {kind}", windows, edits, bench.progress)
        curves[kind] = [ratio(effects, place) for place in range(len(factors))]
    variants = [ModelVariant("1"), *(with_edits(lm, f"{f:g}", scale(weights, f)) for f in factors)]
    scored = bench.grid(lm, variants, bench.each("tasks", "tasks"))
    gains = [[-lost for lost in scored.lost(f"{factor:g}")] for factor in factors]
    averages = [averaged(by_task) for by_task in gains]
    rows: list[tuple[Cell, ...]] = [
        (f"{factor:g}", sw, control, _difference(gain))
        for factor, sw, control, gain in zip(factors, curves[SW], curves[_CONTROLS], averages, strict=True)
    ]
    rows.insert(sum(factor < 1 for factor in factors), ("1", None, None, None))
    missing = " ".join(f"{measure} is not here: {why}" for measure, why in scored.missing.items())
    names = ", ".join(task.partition(":")[2] for task in scored.tasks)
    changes = Table(
        title="change against factor 1",
        columns=("factor", "perplexity, SW", "perplexity, controls", "average accuracy, SW"),
        rows=tuple(rows),
        note=f"SW: {', '.join(map(brief, weights))}, scaled together. Perplexity on {source}; accuracy averaged over "
        f"{names}. {missing}",
    )
    gain, note = _gain(factors, gains, averages)
    return Outcome([changes, gain], [note, _curve_note(factors, curves)], [_chart(factors, curves, averages)])


def _windows(lm: LM, text: str, limit: int, length: int = 512) -> tuple[str, list[list[int]]]:
    """Windows of a text's token stream; our proof text comes in pieces already."""
    if text == "proof":
        return "studfinder-proof-1", encode(lm, proof_text())[0][:limit]
    source, documents = corpus(text)
    joined = "\n\n".join(documents)
    ids = encode(lm, [Text(source, joined)], limit=WHOLE)[0][0]
    cut = [ids[start : start + length] for start in range(0, len(ids), length)]
    return source, [window for window in cut if len(window) > 1][:limit]


def held_out_gain(gains: Sequence[Sequence[np.ndarray]]) -> tuple[list[int], list[np.ndarray]]:
    """Each item's gain under the factor that the other half of the items chose.

    Args:
        gains: by factor and task, an array of each item's score minus its score at factor 1. Factor 1 itself is not
            among them: if no factor gains on a half, it is what that half chooses.

    Returns:
        which factor each half chose (-1 for factor 1), and by task the gains of all items.
    """
    tasks = len(gains[0])
    chosen = []
    for half in (0, 1):
        means = [float(np.mean([array[half::2].mean() for array in by_task])) for by_task in gains]
        best = int(np.argmax(means))
        chosen.append(best if means[best] > 0 else -1)
    judged = [np.zeros(len(gains[0][task])) for task in range(tasks)]
    for half, best in enumerate(chosen):
        for task in range(tasks):
            if best >= 0:
                judged[task][1 - half :: 2] = gains[best][task][1 - half :: 2]
    return chosen, judged


def _gain(
    factors: Sequence[float], gains: Sequence[Sequence[np.ndarray]], averages: Sequence[Interval]
) -> tuple[Table, str]:
    chosen, judged = held_out_gain(gains)
    held, best = averaged(judged), int(np.argmax([gain.value for gain in averages]))
    picked = " and ".join("1" if at < 0 else f"{factors[at]:g}" for at in chosen)
    table = Table(
        title="gain of the best factor",
        columns=("how", "factor", "gain in average accuracy"),
        rows=(
            ("chosen on one half of the items, judged on the other", picked, _difference(held)),
            ("chosen and judged on the same items", f"{factors[best]:g}", _difference(averages[best])),
        ),
        note="The paper (same items, no intervals): Llama-7B 70.12 to 70.51, 13B 72.39 to 72.49, 30B 75.27 to "
        "75.33, Mistral-7B 74.05 to 74.09.",
    )
    says = "a gain" if held.low > 0 else "a loss" if held.high < 0 else "no gain that the items can show"
    return table, (
        f"judged on items that did not choose the factor ({picked}), scaling the super weights as one gives {says}: "
        f"{held:+.2%} of average accuracy. Judged on the items that chose it, factor {factors[best]:g} gives "
        f"{averages[best]:+.2%}."
    )


def _difference(interval: Interval) -> Comparison:
    return Comparison(kind="difference", interval=interval)


def _curve_note(factors: Sequence[float], curves: Mapping[str, Sequence[Comparison]]) -> str:
    def where(kind: str, *higher: bool) -> str:
        found = zip(factors, curves[kind], strict=True)
        return ", ".join(f"{f:g}" for f, r in found if r.changed and (r.interval.low > 1) in higher)

    return (
        "with all super weights scaled as one, perplexity is lower than at factor 1 at "
        f"{where(SW, False) or 'no factor'}, higher at {where(SW, True) or 'none'}; scaling the control weights "
        f"changes it at {where(_CONTROLS, True, False) or 'none'}. What one of them does alone is not asked "
        "here. (Each factor has an interval of its own at 95 %; of many, one may miss by chance.)"
    )


def _chart(factors: Sequence[float], curves: Mapping[str, Sequence[Comparison]], gains: Sequence[Interval]) -> Chart:
    """Perplexity and accuracy against the factor."""

    def line(name: str, found: Sequence[Comparison | Interval], none: float) -> Series:
        at = sorted([*zip(factors, map(point, found), strict=True), (1.0, (none,) * 3)])
        x, points = zip(*at, strict=True)
        return Series(name=name, x=x, points=points, quiet=name == _CONTROLS)

    x = "the weights times ..."
    ratios = (line(_CONTROLS, curves[_CONTROLS], 1.0), line(SW, curves[SW], 1.0))
    accuracy = (line(f"accuracy, {SW}", gains, 0.0),)
    return Chart(
        name="scaling",
        plots=(
            Plot(kind="lines", series=ratios, x=x, y="perplexity / factor 1", none=1.0, log=True),
            Plot(kind="lines", series=accuracy, x=x, y="accuracy minus factor 1", none=0.0, percent=True),
        ),
    )

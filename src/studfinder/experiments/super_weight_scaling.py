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

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from studfinder.edits import Edit, matched_controls, scale
from studfinder.experiments.dots import point
from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.experiments.panel import Condition, Panel, panel_of, with_edits
from studfinder.experiments.weights import super_weights_of
from studfinder.measures import sweep
from studfinder.models import LM
from studfinder.records import Comparison, Interval, Result, Table
from studfinder.report.style import BLUE, GREY, MUTED, VERMILLION, log_ticks, new_figure
from studfinder.report.words import brief
from studfinder.stats import averaged, ratio_interval
from studfinder.texts import WHOLE, Text, corpus, encode, proof_text

_TASKS = "lambada,piqa,arc_easy,arc_challenge,winogrande"
EXPERIMENT = Experiment(
    name="super-weight/scaling",
    paper="2411.07191",
    shows="figure 6 and table 5",
    summary="Does a larger super weight make a better model?",
    needs="about 15 minutes and 1 GB with smollm2 on two cores (plus the scan that finds the weights)",
    presets={
        "cpu": {
            "limit": 100,
            "windows": 16,
            "factors": [0, 0.2, 0.5, 0.8, 1.2, 1.5, 2, 3],
            "tasks": _TASKS,
            "text": "wikitext2",
        },
        "paper": {
            "limit": 100_000,
            "windows": 100_000,
            "factors": [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.8, 1.1, 1.2, 1.3, 1.5, 2, 3],
            "tasks": _TASKS + ",hellaswag,sciq",
            "text": "wikitext2",
        },
    },
)


def run(bench: Bench) -> Outcome:
    """Score every factor on the same items; choose on one half, judge on the other."""
    outcome = Outcome([])
    for name in bench.models:
        with bench.model(name) as lm:
            weights, findings = super_weights_of(bench, lm)
            taken = [weight.index for weight in weights]
            controls = [matched_controls(lm, w, findings, count=1, exclude=taken)[0] for w in weights]
            factors = sorted({float(f) for f in bench.settings["factors"]} - {1.0})
            source, windows = _windows(lm, bench.settings["text"], bench.settings["windows"])
            curves = {
                kind: _sweep(bench, lm, kind, windows, [scale(target, factor) for factor in factors])
                for kind, target in (("super weights", weights), ("controls", controls))
            }
            variants = [Condition("1"), *(with_edits(lm, f"{f:g}", scale(weights, f)) for f in factors)]
            tasks = [f"tasks:{task}" for task in bench.settings["tasks"].split(",") if task]
            panel = panel_of(bench, lm, variants, tasks, {"tasks": bench.settings["limit"]})
        _report(outcome, name, factors, curves, panel, source, ", ".join(brief(weight) for weight in weights))
    return outcome


def _windows(lm: LM, text: str, limit: int, length: int = 512) -> tuple[str, list[list[int]]]:
    """Windows of a text's token stream; our proof text comes in pieces already."""
    if text == "proof":
        return "studfinder-proof-1", encode(lm, proof_text())[0][:limit]
    source, documents = corpus(text)
    joined = "\n\n".join(documents)
    ids = encode(lm, [Text(source, joined)], limit=WHOLE)[0][0]
    cut = [ids[start : start + length] for start in range(0, len(ids), length)]
    return source, [window for window in cut if len(window) > 1][:limit]


def _sweep(
    bench: Bench, lm: LM, kind: str, windows: list[list[int]], edits: Sequence[tuple[Edit, ...]]
) -> list[dict[str, Any]]:
    """By how much each window's negative log-likelihood rises, for each set of edits."""

    def measure() -> dict[str, Any]:
        done = 0

        def progress(pairs: int) -> None:
            nonlocal done
            done += pairs
            bench.progress(f"perplexity with scaled {kind}", done, max(done, len(edits) * len(windows)))

        effects = sweep(lm, windows, edits, progress=progress)
        return {"nll": (effects.nll - effects.clean_nll).tolist(), "tokens": effects.tokens.tolist()}

    found = bench.once(f"perplexity, {kind}", measure)
    return [{"nll": nll, "tokens": found["tokens"]} for nll in found["nll"]]


def _ratio(measured: dict[str, Any]) -> Comparison:
    nll, tokens = np.array(measured["nll"]), np.array(measured["tokens"], dtype=float)
    return Comparison(kind="ratio", interval=ratio_interval(nll, tokens, exponential=True))


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


def _report(
    outcome: Outcome,
    name: str,
    factors: Sequence[float],
    curves: dict[str, list[dict[str, Any]]],
    panel: Panel,
    source: str,
    weights: str,
) -> None:
    gains = [[-lost for lost in panel.lost(f"{factor:g}")] for factor in factors]
    averages = [averaged(by_task) for by_task in gains]
    ratios = {kind: [_ratio(measured) for measured in found] for kind, found in curves.items()}
    where = sum(factor < 1 for factor in factors)
    rows: list[Any] = [
        (f"{factor:g}", sw, control, Comparison(kind="difference", interval=gain))
        for factor, sw, control, gain in zip(
            factors, ratios["super weights"], ratios["controls"], averages, strict=True
        )
    ]
    rows.insert(where, ("1", None, None, None))
    missing = " ".join(f"{measure} is not here: {why}" for measure, why in panel.missing.items())
    names = ", ".join(task.partition(":")[2] for task in panel.tasks)
    outcome.tables.append(
        Table(
            title=f"{name}: change against factor 1",
            columns=("factor", "perplexity, SW", "perplexity, controls", "average accuracy, SW"),
            rows=tuple(rows),
            note=f"SW: {weights}, scaled together. Perplexity on {source}; accuracy averaged over {names}. {missing}",
        )
    )
    chosen, judged = held_out_gain(gains)
    held, best = averaged(judged), int(np.argmax([gain.value for gain in averages]))
    picked = " and ".join("1" if at < 0 else f"{factors[at]:g}" for at in chosen)
    outcome.tables.append(
        Table(
            title=f"{name}: gain of the best factor",
            columns=("how", "factor", "gain in average accuracy"),
            rows=(
                ("chosen on one half of the items, judged on the other", picked, _difference(held)),
                ("chosen and judged on the same items", f"{factors[best]:g}", _difference(averages[best])),
            ),
            note="The paper (same items, no intervals): Llama-7B 70.12 to 70.51, 13B 72.39 to 72.49, 30B 75.27 to "
            "75.33, Mistral-7B 74.05 to 74.09.",
        )
    )
    outcome.notes.append(_note(name, held, averages[best], factors[best], picked))
    outcome.notes += _curve_notes(name, factors, ratios)
    outcome.data[name] = {
        "factors": factors,
        **{kind: [point(one.interval) for one in found] for kind, found in ratios.items()},
        "accuracy": [point(gain) for gain in averages],
    }


def _difference(interval: Interval) -> Comparison:
    return Comparison(kind="difference", interval=interval)


def _note(name: str, held: Interval, same: Interval, factor: float, picked: str) -> str:
    says = "a gain" if held.low > 0 else "a loss" if held.high < 0 else "no gain that the items can show"
    return (
        f"{name}: judged on items that did not choose the factor ({picked}), scaling the super weights as one "
        f"gives {says}: {held.value:+.2%} [{held.low:+.2%}, {held.high:+.2%}] of average accuracy. Judged on the items "
        f"that chose it, factor {factor:g} gives {same.value:+.2%} [{same.low:+.2%}, {same.high:+.2%}]."
    )


def _curve_notes(name: str, factors: Sequence[float], ratios: dict[str, list[Comparison]]) -> list[str]:
    better = [f"{f:g}" for f, r in zip(factors, ratios["super weights"], strict=True) if r.interval.high < 1]
    worse = [f"{f:g}" for f, r in zip(factors, ratios["super weights"], strict=True) if r.interval.low > 1]
    moved = [f"{f:g}" for f, r in zip(factors, ratios["controls"], strict=True) if r.changed]
    return [
        f"{name}: with all super weights scaled as one, perplexity is lower than at factor 1 at "
        f"{', '.join(better) or 'no factor'}, higher at {', '.join(worse) or 'none'}; scaling the control weights "
        f"changes it at {', '.join(moved) or 'none'}. What one of them does alone is not asked here. (Each factor has "
        "an interval of its own at 95 %; of many, one may miss by chance.)"
    ]


def draw(result: Result, width: float) -> dict[str, Figure]:
    """Perplexity and accuracy against the factor, for each model."""
    figures = {}
    wide = width > 600
    for place, (name, seen) in enumerate(result.data.items()):
        figure = new_figure(width, 340 if wide else 560)
        above, below = figure.subplots(*((1, 2) if wide else (2, 1)))
        for kind, colour in (("controls", GREY), ("super weights", VERMILLION)):
            _line(above, seen["factors"], seen[kind], 1.0, colour, kind)
        above.set(yscale="log", ylabel="perplexity / factor 1")
        low, high = above.get_ylim()
        above.set_ylim(min(low, 0.9), max(high, 1.2))
        log_ticks(above.yaxis, most=6)
        _line(below, seen["factors"], seen["accuracy"], 0.0, BLUE, "accuracy, super weights")
        below.set_ylabel("accuracy minus factor 1")
        below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.0%}"))
        for axes, none in ((above, 1.0), (below, 0.0)):
            axes.axhline(none, color=MUTED, linewidth=1)
            axes.set_xlabel(f"the weights times ... ({name})")
            axes.grid(axis="y")
        figure.legend(loc="outside upper left", ncols=3 if wide else 1)
        figures["scaling" if not place else f"scaling-{place + 1}"] = figure
    return figures


def _line(axes: Any, factors: Sequence[float], points: Sequence[Any], none: float, colour: str, label: str) -> None:
    at = sorted([*zip(factors, points, strict=True), (1.0, [none] * 3)])
    x = [factor for factor, _ in at]
    value, low, high = np.array([p for _, p in at], dtype=float).T
    axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(x, value, marker="o", markersize=4, color=colour, linewidth=2, label=label)

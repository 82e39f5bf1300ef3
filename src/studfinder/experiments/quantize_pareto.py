"""Quality against true bits per weight: does keeping numbers pay for itself?

What it asks: at equal bits, counting scales, zero points and the 48 bits of every kept number, is some way of
quantising that keeps something (the proven super weights, their columns, or the largest 0.1 % or 0.5 % of each matrix)
as good as the best that keeps nothing? How: every method over elements, block sizes and zero-point rules, perplexity on
the same windows. The best at each rate is chosen on every second window and judged on the others, because the best of
many is lucky on the windows that chose it; intervals are corrected for the number of pairs. The control: the same
groups begun at other columns, which changes nothing that anyone would call quality.

What to look at: whether the coloured points lie below the line, and by how much more than shifting groups does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.experiments.quantize_frontier import Member, Step, steps, verdict
from studfinder.experiments.quantize_phase import Shifted, shifts
from studfinder.experiments.quantize_recipes import CAVEAT, NAMES, Made, Recipe, RecipeWork, block_of, fitted, listed
from studfinder.experiments.quantize_tables import change, refusals, score, tally
from studfinder.experiments.weights import load_findings
from studfinder.models import LM
from studfinder.quantizers import RTN, Clip, Scheme, hold_out, kernel, method_class
from studfinder.records import Comparison, Findings, Result, Table
from studfinder.records.outside import whole_number
from studfinder.report.style import CATEGORIES, GREY, INK, MARKERS, VERMILLION, log_ticks, new_figure
from studfinder.report.words import number

EXPERIMENT = Experiment(
    name="quantize/pareto",
    paper="2411.07191",
    shows="ours",
    summary="At equal bits per weight, does a quantised model gain by keeping a few numbers?",
    needs="about two hours and 2 GB with smollm2 on two cores (estimated; plus the scan that finds the super weights)",
    presets={
        "cpu": {
            "limit": 16,
            "text": "wikitext2",
            "elements": "2,3,4,6,8",
            "blocks": "64,192,channel",
            "zeros": "none,integer,float",
            "held": "0.001,0.005",
            "methods": "gptq,awq,smoothquant,clip-restore",
            "method_elements": "4",
            "method_blocks": "64,channel",
            "phases": 7,
            "calibration": "wikipedia",
            "calibration_windows": 32,
            "length": 512,
        }
    },
)
_SUPER, _COLUMNS = "super weights", "columns of super weights"
LOW, HIGH = 2.5, 8.5
"""The rates that are looked at, in bits a weight."""


def run(bench: Bench) -> Outcome:
    """Every scheme's perplexity, the two frontiers, the phase null."""
    outcome = Outcome([])
    measure = f"perplexity:{bench.settings['text']}"
    for name in bench.models:
        with bench.model(name) as lm:
            findings = load_findings(bench, lm)
            recipes = [*_nearest(bench, lm, findings), *_others(bench, lm, findings), *_phases(bench, lm)]
            made = RecipeWork(bench=bench, lm=lm, measures=[measure], limits={"perplexity": bench.settings["limit"]})
            _add(outcome, name, made.carried_out(recipes), measure, bool(_super(findings)))
    return outcome


# --- what is tried --------------------------------------------------------------------------------------------------


def _nearest(bench: Bench, lm: LM, findings: Findings) -> Iterator[Recipe]:
    """Round to nearest, over elements, blocks and zero points, with and without a search of the range; shares of all
    weights are kept only where the zero point is an integer, which first trials found best."""
    own = bench.settings
    for bits in listed(own["elements"]):
        for block in listed(own["blocks"]):
            for zero in listed(own["zeros"]):
                scheme = _scheme(lm, bits, block, zero)
                keeps = list(_keeps(bench, findings))
                few = [(keep, kept) for keep, kept in keeps if kept in ("", _SUPER, _COLUMNS)]
                for keep, kept in {"integer": keeps, "none": few}.get(zero, few[:1]):
                    yield _recipe("RTN", RTN(scheme=scheme), keep, kept)
                    if zero != "float":  # 0 is no code there, so that a range cannot shrink about it
                        yield _recipe("RTN clip", RTN(scheme=scheme, clip=Clip()), keep, kept)


def _others(bench: Bench, lm: LM, findings: Findings) -> Iterator[Recipe]:
    own = bench.settings
    for name in listed(own["methods"]):
        for bits in listed(own["method_elements"]):
            for block in listed(own["method_blocks"]):
                scheme = _scheme(lm, bits, block, "integer")
                options = {"activations": None} if name == "smoothquant" else {}
                method = method_class(name)(scheme=scheme, **options)
                for keep, kept in _keeps(bench, findings):
                    yield _recipe(NAMES[name], method, keep, kept)


def _phases(bench: Bench, lm: LM) -> Iterator[Recipe]:
    """The smallest group of 4 bits, begun elsewhere."""
    groups = [size for block in listed(bench.settings["blocks"]) if (size := whole_number(block))]
    if not groups:
        return
    scheme = _scheme(lm, "4", str(min(groups)), "integer")
    for shift in (0, *shifts(min(groups), bench.settings["phases"])):
        method = Shifted(rtn=RTN(scheme=scheme, clip=Clip()), shift=shift)
        yield Recipe(label=f"RTN clip {_brief(scheme)}, begun {shift} columns away", method=method, family="phase")


def _keeps(bench: Bench, findings: Findings) -> Iterator[tuple[Any, str]]:
    yield None, ""
    if _super(findings):
        yield hold_out(_super(findings)), _SUPER
        yield hold_out(_super(findings), columns=True), _COLUMNS
    for share in listed(bench.settings["held"]):
        yield hold_out(fraction=float(share)), f"{float(share):.4g} of all".replace("0.", ".", 1)


def _super(findings: Findings) -> list[Any]:
    return list(findings.proven)


def _scheme(lm: LM, bits: str, block: str, zero: str) -> Scheme:
    return fitted(lm, Scheme(element=f"int{bits}", block=block_of(block), zero=zero))  # type: ignore[arg-type]


def _recipe(name: str, method: Any, keep: Any, kept: str) -> Recipe:
    label = f"{name} {_brief(method.scheme)}" + (f", keep {kept}" if kept else "")
    return Recipe(label=label, method=method, keep=keep, kept=kept, family=name)


def _brief(scheme: Scheme) -> str:
    block = f"g{scheme.block}" if isinstance(scheme.block, int) else str(scheme.block)
    return f"{scheme.element} {block} {scheme.zero}"


# --- what is said of it ---------------------------------------------------------------------------------------------


def _add(outcome: Outcome, name: str, made: Sequence[Made], measure: str, proven: bool) -> None:
    original, tried = made[0], [one for one in made[1:] if one.recipe.family != "phase" and not one.refused]
    phases = [one for one in made[1:] if one.recipe.family == "phase" and not one.refused]
    everything = _steps(tried, measure)
    nearest = _steps([one for one in tried if one.recipe.family.startswith("RTN")], measure)
    outcome.tables += [
        _steps_table(name, "all methods", everything),
        _steps_table(name, "rounding to nearest only", nearest),
        _schemes_table(name, original, tried, measure),
        *_phase_table(name, phases, measure),
    ]
    outcome.notes.append(f"{name}, all methods, {LOW} to {HIGH} bits: {verdict(everything)}.")
    outcome.notes.append(f"{name}, rounding to nearest only: {verdict(nearest)}.")
    outcome.notes += _phase_note(name, phases, measure) + _alone_note(name, tried, measure) + refusals(name, made)
    if not proven:
        outcome.notes.append(f"{name}: no super weight is proven, so none could be kept.")
    outcome.notes.append(CAVEAT)
    outcome.data.setdefault("models", {})[name] = {
        "original": original.scores[measure].value,
        "points": [
            [one.bits, one.scores[measure].value, one.recipe.family, one.recipe.kept, one.recipe.label] for one in tried
        ],
    }


def _steps(tried: Sequence[Made], measure: str) -> list[Step]:
    sets: dict[bool, list[Member]] = {False: [], True: []}
    for one in tried:
        items = one.scores[measure].items
        member = Member(one.recipe.label, one.bits or 0.0, np.array(items["nll"]), np.array(items["tokens"]))
        sets[bool(one.recipe.kept)].append(member)
    return steps(sets[False], sets[True], LOW, HIGH)


def _steps_table(name: str, which: str, found: Sequence[Step]) -> Table:
    rows = tuple(
        (
            f"{step.low:.3f} to {step.high:.3f}",
            step.plain or "none costs so little",
            step.kept or "none costs so little",
            None if step.ratio is None else Comparison(kind="ratio", interval=step.ratio),
        )
        for step in found
    )
    return Table(
        title=f"{name}: the best at each rate, {which}",
        columns=("bits per weight", "best that keeps nothing", "best that keeps something", "perplexity, kept / not"),
        rows=rows,
        note="The best of those that cost no more (rates to a thousandth of a bit), chosen on every second window; the "
        f"ratio is of the other windows, paired, its interval corrected for the number of pairs. {CAVEAT}",
    )


def _schemes_table(name: str, original: Made, tried: Sequence[Made], measure: str) -> Table:
    rows: list[Any] = [("original", None, score(original, measure), None, None)]
    for one in sorted(tried, key=lambda one: one.bits or 0.0):
        runs = "no place for single numbers" if one.recipe.kept else kernel(one.recipe.method.scheme) or "none"
        rows.append((one.recipe.label, one.bits, score(one, measure), change(one, original, measure), runs))
    return Table(
        title=f"{name}: every scheme",
        columns=("scheme", "bits per weight", measure.replace(":", " "), "/ original", "kernel in vLLM"),
        rows=tuple(rows),
        note="Bits: elements, scales (bf16), zero points, and 48 bits a kept number, over the matrices of the blocks; "
        "what is kept is held out of its block before the range is taken. Windows of 512 tokens resampled. Taken on: "
        f"{original.scores[measure].text}. {CAVEAT}",
    )


def _phase_table(name: str, phases: Sequence[Made], measure: str) -> list[Table]:
    if not phases:
        return []
    rows = tuple((one.recipe.label, score(one, measure), change(one, phases[0], measure)) for one in phases)
    return [
        Table(
            title=f"{name}: the same groups, begun elsewhere",
            columns=("scheme", measure.replace(":", " "), "/ begun at 0"),
            rows=rows,
            note="The null: as many groups, of the same size, with the same rule. Their perplexities differ by chance "
            "of rounding alone; a smaller difference between two schemes says nothing of the schemes.",
        )
    ]


def _phase_note(name: str, phases: Sequence[Made], measure: str) -> list[str]:
    if len(phases) < 2:
        return []
    values = [one.scores[measure].value for one in phases]
    return [
        f"{name}: beginning the groups of {phases[0].recipe.method.scheme.block} at other columns alone moves the "
        f"perplexity between {number(min(values))} and {number(max(values))}, a factor of "
        f"{max(values) / min(values):.3f}: smaller differences between single schemes mean nothing."
    ]


def _alone_note(name: str, tried: Sequence[Made], measure: str) -> list[str]:
    """What keeping only the super weights does, or their columns, everything else alike."""
    by_label = {one.recipe.label: one for one in tried}
    notes = []
    for kept in (_SUPER, _COLUMNS):
        pairs = []
        for one in tried:
            plain = by_label.get(one.recipe.label.partition(", keep")[0])
            if one.recipe.kept == kept and plain is not None:
                pairs.append((one, plain))
        says = tally(pairs, measure)
        notes += [f"{name}: keeping the {kept} alone, all else alike, {says}."] if says else []
    return notes


# --- figures --------------------------------------------------------------------------------------------------------


def draw(result: Result, width: float) -> dict[str, Figure]:
    """Perplexity over bits, a figure a model."""
    return {
        "pareto" + (f"-{place + 1}" if place else ""): _plane(name, seen, width)
        for place, (name, seen) in enumerate(result.data["models"].items())
    }


_FRAME = (0.3, 1000.0)
"""Percent: what is higher is broken, and what is lower cannot be told from the original."""


def _plane(name: str, seen: dict[str, Any], width: float) -> Figure:
    wide = width > 600
    base = seen["original"]

    def above(value: float) -> float:
        """Perplexity above the original's, in percent, not below the frame."""
        return max(100 * (value / base - 1), _FRAME[0])

    points = [(bits, above(value), kept) for bits, value, _, kept, _ in seen["points"] if np.isfinite(value)]
    figure = new_figure(width, 500 if wide else 560)
    axes = figure.subplots()
    ends = max(bits for bits, *_ in points)
    kinds = list(dict.fromkeys(kept for *_, kept in points if kept))
    looks = zip([*kinds, ""], [*CATEGORIES[: len(kinds)], GREY], [*MARKERS[: len(kinds)], "o"], strict=True)
    for kind, colour, marker in looks:
        own = [(bits, value) for bits, value, kept in points if kept == kind]
        label = f"keep {kind}" if kind else "nothing kept"
        face = colour if kind else "none"
        axes.plot(*zip(*own, strict=True), marker, color=colour, mfc=face, ms=5, linestyle="none", label=label)
    for kept, colour, label in (
        (False, INK, "best that keeps nothing"),
        (True, VERMILLION, "best that keeps something"),
    ):
        own = sorted((bits, value) for bits, value, kind in points if bool(kind) == kept)
        if own:
            best = np.minimum.accumulate([value for _, value in own])
            places = [*(bits for bits, _ in own), ends]
            axes.step(places, [*best, best[-1]], where="post", color=colour, label=label)
    axes.set_yscale("log")
    axes.set_ylim(*_FRAME)
    log_ticks(axes.yaxis)
    axes.set_xlabel("true bits per weight")
    axes.set_ylabel("perplexity above the original's, %")
    over = sum(value > _FRAME[1] for _, value, _ in points) + len(seen["points"]) - len(points)
    under = sum(value == _FRAME[0] for _, value, _ in points)
    outside = [f"{n} {where}" for n, where in ((over, "above"), (under, "at or below")) if n]
    sides = f" (of {len(seen['points'])}, {' and '.join(outside)} this frame)" if outside else ""
    axes.set_title(f"{name}{sides}")
    axes.grid()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=3 if wide else 1)
    return figure

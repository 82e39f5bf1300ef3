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
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from studfinder.experiments.quantize_phase import Shifted, shifts
from studfinder.experiments.weights import load_findings
from studfinder.models import LM
from studfinder.quantizers import RTN, Clip, Scheme, hold_out, method_class, seen_in_words
from studfinder.records import Cell, Comparison, Format, SuperWeight, Table
from studfinder.records.config import option
from studfinder.records.outside import whole_number
from studfinder.report.style import CATEGORIES, GREY, INK, MARKERS, MUTED, VERMILLION, log_ticks, new_figure
from studfinder.report.words import number
from studfinder.studies import GridScores, ModelVariant
from studfinder.studies.experiment import Bench, Experiment, Outcome
from studfinder.studies.frontier import Member, Step, steps, verdict
from studfinder.studies.rounding import CAVEAT, NAMES, CalibratedConfig, Rounding, block_of
from studfinder.visible import visible


@dataclass(frozen=True, kw_only=True)
class ParetoConfig(CalibratedConfig):
    """Which schemes."""

    text: str = option("wikitext2", help="The text of the perplexity.")
    elements: tuple[str, ...] = option("2,3,4,6,8", help="Bits of an integer.", commas=True)
    blocks: tuple[str, ...] = option("64,192,channel", help="Numbers that share a scale.", commas=True)
    zeros: tuple[str, ...] = option("none,integer,float", help="Zero points.", commas=True)
    held: tuple[float, ...] = option("0.001,0.005", help="Shares of each matrix that are kept.", commas=True)
    methods: tuple[str, ...] = option("gptq,awq,smoothquant,clip-restore", help="Beside rounding.", commas=True)
    method_elements: tuple[str, ...] = option("4", help="Bits with these methods.", commas=True)
    method_blocks: tuple[str, ...] = option("64,channel", help="Blocks with these methods.", commas=True)
    phases: int = option(7, help="How many times the smallest groups are begun elsewhere.", least=0)
    calibration_windows: int = option(32, help="Windows of it.", least=1)


EXPERIMENT = Experiment(
    name="quantize/pareto",
    paper="2411.07191",
    shows="ours",
    summary="At equal bits per weight, does a quantised model gain by keeping a few numbers?",
    needs="about two hours and 2 GB with smollm2 on two cores (estimated; plus the scan that finds the super weights)",
    presets={"cpu": ParetoConfig()},
    spread=True,
)
_SUPER, _COLUMNS = "super weights", "columns of super weights"
LOW, HIGH = 2.5, 8.5
"""The rates that are looked at, in bits a weight."""


PHASE = "phase"


def run(bench: Bench, lm: LM) -> Outcome:
    """Every scheme's perplexity, the two frontiers, the phase null."""
    measure, proven, rounding = (
        f"perplexity:{bench.config.text}",
        load_findings(bench, lm).proven,
        Rounding(bench, lm),
    )
    variants = [*_nearest(rounding, proven), *_others(rounding, proven), *_phases(rounding)]
    scored = rounding.bench.grid(lm, [ModelVariant("original"), *variants], [measure], lenient=True)
    tried = [one for one in scored.tried() if one.family != PHASE]
    phases = [one for one in scored.tried() if one.family == PHASE]
    everything = _steps(scored, tried, measure)
    nearest = _steps(scored, [one for one in tried if one.family.startswith("RTN")], measure)
    tables = [
        _steps_table("all methods", everything),
        _steps_table("rounding to nearest only", nearest),
        _schemes_table(scored, tried, measure),
        *_phase_table(scored, phases, measure),
    ]
    notes = [f"all methods, {LOW} to {HIGH} bits: {verdict(everything)}."]
    notes.append(f"rounding to nearest only: {verdict(nearest)}.")
    notes += _phase_note(scored, phases, measure) + _alone_note(scored, tried, measure) + scored.notes()
    if not proven:
        notes.append("no super weight is proven, so none could be kept.")
    values = {one.label: scored.scores[one.label][measure].value for one in tried}
    data = {
        "original": scored.scores[scored.original][measure].value,
        "points": [[scored.bits(one.label), values[one.label], one.family, one.kept, one.label] for one in tried],
    }
    return Outcome(tables, notes, data=data, remarks=[CAVEAT])


# --- what is tried --------------------------------------------------------------------------------------------------


def _nearest(rounding: Rounding, proven: Sequence[SuperWeight]) -> Iterator[ModelVariant]:
    """Round to nearest, over elements, blocks and zero points, with and without a search of the range; shares of all
    weights are kept only where the zero point is an integer, which first trials found best."""
    own = rounding.bench.config
    keeps = list(_keeps(rounding, proven))
    few = [(keep, kept) for keep, kept in keeps if kept in ("", _SUPER, _COLUMNS)]
    for bits in own.elements:
        for block in own.blocks:
            for zero in own.zeros:
                scheme = _scheme(rounding, bits, block, zero)
                for keep, kept in {"integer": keeps, "none": few}.get(zero, few[:1]):
                    yield _variant(rounding, "RTN", RTN(scheme=scheme), keep, kept)
                    if zero != "float":  # 0 is no code there, so that a range cannot shrink about it
                        yield _variant(rounding, "RTN clip", RTN(scheme=scheme, clip=Clip()), keep, kept)


def _others(rounding: Rounding, proven: Sequence[SuperWeight]) -> Iterator[ModelVariant]:
    own = rounding.bench.config
    for name in own.methods:
        for bits in own.method_elements:
            for block in own.method_blocks:
                options = {"activations": None} if name == "smoothquant" else {}
                method = method_class(name)(scheme=_scheme(rounding, bits, block, "integer"), **options)
                for keep, kept in _keeps(rounding, proven):
                    yield _variant(rounding, NAMES[name], method, keep, kept)


def _phases(rounding: Rounding) -> Iterator[ModelVariant]:
    """The smallest group of 4 bits, begun elsewhere."""
    own = rounding.bench.config
    groups = [size for block in own.blocks if (size := whole_number(block))]
    if not groups:
        return
    scheme = _scheme(rounding, "4", str(min(groups)), "integer")
    for shift in (0, *shifts(min(groups), own.phases)):
        method = Shifted(rtn=RTN(scheme=scheme, clip=Clip()), shift=shift)
        label = f"RTN clip {_brief(scheme)}, begun {shift} columns away"
        yield rounding.variant(label, method, family=PHASE)


def _keeps(rounding: Rounding, proven: Sequence[SuperWeight]) -> Iterator[tuple[Any, str]]:
    yield None, ""
    if proven:
        yield hold_out(proven), _SUPER
        yield hold_out(proven, columns=True), _COLUMNS
    for share in rounding.bench.config.held:
        yield hold_out(fraction=share), f"{share:.4g} of all".replace("0.", ".", 1)


def _scheme(rounding: Rounding, bits: str, block: str, zero: str) -> Scheme:
    return rounding.scheme(Scheme(element=f"int{bits}", block=block_of(block), zero=zero))  # type: ignore[arg-type]


def _variant(rounding: Rounding, name: str, method: Any, keep: Any, kept: str) -> ModelVariant:
    label = f"{name} {_brief(method.scheme)}" + (f", keep {kept}" if kept else "")
    return rounding.variant(label, method, keep=keep, kept=kept, family=name)


def _brief(scheme: Scheme) -> str:
    block = f"g{scheme.block}" if isinstance(scheme.block, int) else str(scheme.block)
    return f"{scheme.element} {block} {scheme.zero}"


# --- what is said of it ---------------------------------------------------------------------------------------------


def _steps(scored: GridScores, tried: Sequence[ModelVariant], measure: str) -> list[Step]:
    sets: dict[bool, list[Member]] = {False: [], True: []}
    for one in tried:
        nll, tokens = (scored.items(one.label, measure, name) for name in ("nll", "tokens"))
        sets[bool(one.kept)].append(Member(one.label, scored.bits(one.label) or 0.0, nll, tokens))
    return steps(sets[False], sets[True], LOW, HIGH)


def _steps_table(which: str, found: Sequence[Step]) -> Table:
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
        title=f"the best at each rate, {which}",
        columns=("bits per weight", "best that keeps nothing", "best that keeps something", "perplexity, kept / not"),
        rows=rows,
        note="The best of those that cost no more (rates to a thousandth of a bit), chosen on every second window; the "
        f"ratio is of the other windows, paired, its interval corrected for the number of pairs. {CAVEAT}",
    )


def _schemes_table(scored: GridScores, tried: Sequence[ModelVariant], measure: str) -> Table:
    original = scored.scores[scored.original][measure]
    rows: list[tuple[Cell, ...]] = [("original", None, original.interval, None, None)]
    for one in sorted(tried, key=lambda one: scored.bits(one.label) or 0.0):
        runs = "no place for single numbers" if one.kept else seen_in_words(Format(weights=one.detail.method.scheme))
        score, change = scored.scores[one.label][measure].interval, scored.change(measure, one.label)
        rows.append((one.label, scored.bits(one.label), score, change, runs))
    return Table(
        title="every scheme",
        columns=("scheme", "bits per weight", measure.replace(":", " "), "/ original", "seen to load in"),
        rows=tuple(rows),
        note="Bits: elements, scales (bf16), zero points, and 48 bits a kept number, over the matrices of the blocks; "
        "what is kept is held out of its block before the range is taken. Windows of 512 tokens resampled. Taken on: "
        f"{original.text}. {CAVEAT}",
    )


def _phase_table(scored: GridScores, phases: Sequence[ModelVariant], measure: str) -> list[Table]:
    if not phases:
        return []
    first = phases[0].label
    return [
        Table(
            title="the same groups, begun elsewhere",
            columns=("scheme", measure.replace(":", " "), "/ begun at 0"),
            rows=tuple(
                (one.label, scored.scores[one.label][measure].interval, scored.change(measure, one.label, first))
                for one in phases
            ),
            note="The null: as many groups, of the same size, with the same rule. Their perplexities differ by chance "
            "of rounding alone; a smaller difference between two schemes says nothing of the schemes.",
        )
    ]


def _phase_note(scored: GridScores, phases: Sequence[ModelVariant], measure: str) -> list[str]:
    if len(phases) < 2:
        return []
    values = [scored.scores[one.label][measure].value for one in phases]
    return [
        f"beginning the groups of {phases[0].detail.method.scheme.block} at other columns alone moves the "
        f"perplexity between {number(min(values))} and {number(max(values))}, a factor of "
        f"{max(values) / min(values):.3f}: smaller differences between single schemes mean nothing."
    ]


def _alone_note(scored: GridScores, tried: Sequence[ModelVariant], measure: str) -> list[str]:
    """What keeping only the super weights does, or their columns, everything else alike."""
    labels, notes = {one.label for one in tried}, []
    for kept in (_SUPER, _COLUMNS):
        pairs = [(one.label, one.label.partition(", keep")[0]) for one in tried if one.kept == kept]
        says = scored.tally([pair for pair in pairs if pair[1] in labels], measure)
        notes += [f"keeping the {kept} alone, all else alike, {says}."] if says else []
    return notes


# --- figures --------------------------------------------------------------------------------------------------------


_FRAME = (0.3, 1000.0)
"""Percent: what is higher is broken, and what is lower cannot be told from the original."""


_CORNER: dict[str, Any] = {"ha": "right", "va": "top", "color": MUTED, "fontsize": 11}


def draw(name: str, seen: dict[str, Any], width: float) -> Figure:
    """Perplexity over bits."""
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
    if outside:
        said = f"of {len(seen['points'])} schemes, {' and '.join(outside)} this frame"
        said = said if wide else fill(said, 24)
        axes.annotate(said, (1, 1), xycoords="axes fraction", xytext=(-4, -4), textcoords="offset points", **_CORNER)
    axes.set_title(visible(name))
    axes.grid()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=3 if wide else 1)
    return figure

"""How large may a block be if the super weights are kept (Yu et al. 2024, arXiv 2411.07191, figure 7)?

What it asks: does keeping the super weights let blocks grow where they are of use? How: rounding to nearest, over 1-D
runs of n x n entries of the flattened matrix (what the paper's code calls a block of n x n), over true n x n tiles, or
over whole tensors: plain; with the super weights held out before the range is taken; with as many others held out, the
nearest in size; and with the largest 0.1 %. A layout is usable where plain rounding less than doubles the perplexity.
In the one of the largest blocks of these the paper's CLIP-quantise-RESTORE follows, with tasks beside perplexity: z
chosen for each matrix on calibration text, or the same z for all; the super weights restored, others instead, nothing.

The paper's code falls back to one block a tensor, silently, where n x n does not divide a matrix; here the last run is
shorter. Its printed step, (max - min) / (2^(N-1) - 1), would make 4 bits 3. RESTORE alone, without CLIP or holding out,
changes nothing where the super weight is its block's extremum, because that is what the range is made of: a table says
where it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch

from studfinder.errors import StudfinderError
from studfinder.experiments.weights import SuperWeightConfig, controls_of, named, super_weights_of, unproven
from studfinder.models import LM
from studfinder.quantizers import ClipRestore, Quantized, Scheme, hold_out, targets
from studfinder.quantizers.scheme import tile
from studfinder.records import Cell, Claim, ClaimResult, SuperWeight, Table
from studfinder.records.config import option
from studfinder.report.words import brief
from studfinder.studies import KL, PAIRED, GridScores, ModelVariant, judged
from studfinder.studies.experiment import Bench, Experiment, Outcome
from studfinder.studies.rounding import CAVEAT, CalibratedConfig, Rounding, families_chart, kept_pairs

_PAPER = (
    "The paper (average of seven tasks, INT4, blocks of 128^2, 256^2, 512^2 and 1024^2 entries): Llama-7B RTN 66.21, "
    "63.41, 50.51, 27.55, theirs 66.21, 63.41, 57.85, 45.40; Mistral-7B RTN 70.29, 64.46, 36.88, 28.13, theirs 72.26, "
    "65.37, 45.28, 33.82; uncompressed Llama-7B 70.1."
)
_GROWS = Claim(
    key="super-weight/blocks-grow",
    says="Where rounding is of use, holding the super weights out of their blocks costs less than plain rounding.",
    decides="KL with super weights held out minus KL with as many others held out, nats per token",
    kind="less",
    published=_PAPER,
)
_RESTORES = Claim(
    key="super-weight/clip-restore",
    says="CLIP and RESTORE beat CLIP alone.",
    decides="KL with CLIP and super weights restored minus KL with CLIP and as many others restored, nats per token",
    kind="less",
    published="no figure without RESTORE",
)
_SEARCHED = Claim(
    key="super-weight/searched-clip",
    says="A z that is searched on calibration text beats a fixed one.",
    decides="KL with z chosen for each matrix minus KL with the best of the fixed z, nats per token",
    kind="less",
    published="z minimises the reconstruction error on 500 examples; the scripts have 9, 11, 12 or 20",
)


@dataclass(frozen=True, kw_only=True)
class BlockSizeConfig(CalibratedConfig, SuperWeightConfig):
    """Which blocks of what."""

    text: str = option("wikitext2", help="The text of the perplexity.")
    layouts: tuple[str, ...] = option(
        "int4:runs:32,int5:runs:64,int5:runs:128,int5:runs:256",
        help="Elements, runs or tiles, and n of blocks of n x n entries; or element:tensor.",
        commas=True,
    )
    tasks: tuple[str, ...] = option("piqa,arc_easy", help="Tasks at the largest usable block.", commas=True)
    task_items: int = option(60, help="Items of each.", least=1)
    candidates: tuple[float, ...] = option("inf,20,9,5", help="What z is searched among.", commas=True, above=0)
    fixed: tuple[float, ...] = option("20,9,5", help="Fixed values of z.", commas=True, above=0)


EXPERIMENT = Experiment(
    name="super-weight/block-size",
    paper="2411.07191",
    shows="figure 7",
    summary="Does keeping the super weights let blocks of few-bit weights grow?",
    needs="about 12 minutes and 2 GB with smollm2 in float32 on one thread, after a scan",
    presets={"cpu": BlockSizeConfig()},
    claims=(_GROWS, _RESTORES, _SEARCHED),
    spread=True,
)
_HELD, _OTHERS, _LARGE = "hold out the super weights", "hold out others instead", "hold out the largest 0.1 %"
_RESTORED, _RESTORED_OTHERS, _BARE = (f"CLIP, restore {what}" for what in ("the super weights", "others", "nothing"))
_FIXED = "CLIP at z = "
_USABLE = 2
"""Times the perplexity: what plain rounding costs less than is of use."""


@dataclass(frozen=True, kw_only=True)
class Runs(ClipRestore):
    """Clip and round in 1-D runs of the flattened matrix, as the super-weight paper's code: `block` entries share a
    range, wherever rows end."""

    def rounded(self, weight_RC: torch.Tensor, z: float, held_RC: torch.Tensor | None = None) -> InRuns:
        """A matrix (out, in), clamped to mean|w| + z std|w| of each run."""
        held = None if held_RC is None else held_RC.reshape(1, -1)
        flat = super().rounded(weight_RC.reshape(1, -1), z, held)
        return InRuns(flat.codes_RC.reshape(weight_RC.shape), flat.grid, self.scheme, flat.kept, None, flat)


@dataclass(frozen=True)
class InRuns(Quantized):
    """A matrix whose blocks are runs of its flattened entries; `flat` is it as one row."""

    flat: Quantized | None = None

    @property
    def bits(self) -> float:
        assert self.flat is not None
        return self.flat.bits

    def dequantized(self) -> torch.Tensor:
        assert self.flat is not None
        return self.flat.dequantized().reshape(self.codes_RC.shape)


def layout(text: str) -> tuple[type[ClipRestore], Scheme]:
    """A layout of the settings, with a float minimum and fp32 scales as the paper's code has them but for their type.

    Raises:
        StudfinderError: it is none.
    """
    own: dict[str, Any] = {"zero": "float", "scale": "float32", "remainder": "block"}
    match text.split(":"):
        case [element, "tensor"]:
            return ClipRestore, Scheme(element=element, block="tensor", **own)  # type: ignore[arg-type]
        case [element, "runs" | "tiles" as shape, n] if n.isdigit() and int(n):
            block = int(n) ** 2 if shape == "runs" else (int(n), int(n))
            return (Runs if shape == "runs" else ClipRestore), Scheme(element=element, block=block, **own)  # type: ignore[arg-type]
    raise StudfinderError(f"layout {text!r}", expected="int4:runs:64, int4:tiles:64 or int4:tensor")


def run(bench: Bench, lm: LM) -> Outcome:
    """Every layout with and without keep; CLIP and RESTORE in the largest that is of use."""
    layouts = {text: layout(text) for text in bench.config.layouts}
    weights, findings = super_weights_of(bench, lm)
    keeps = {
        _HELD: hold_out(weights),
        _OTHERS: hold_out(controls_of(lm, weights, findings)),
        _LARGE: hold_out(fraction=0.001),
    }
    rounding, measure = Rounding(bench, lm), f"perplexity:{bench.config.text}"
    families = {text: list(_layout(rounding, text, *layouts[text], keeps)) for text in layouts}
    scored = rounding.scored([one for family in families.values() for one in family], [measure])
    place, times = _place(scored, list(layouts), measure)
    of_use = "the largest usable block" if times < _USABLE else "the best here, and of no use"
    clipped = [*families[place], *_clipped(rounding, place, *layouts[place], keeps)]
    tasks = [f"tasks:{task}" for task in bench.config.tasks]
    closer = rounding.scored(clipped, [measure, *tasks], limits={"tasks": bench.config.task_items})
    alone = _alone(lm, weights, layouts)
    held = f"Super weights: {named(weights)}. What is held out sets no range and keeps its value. "
    tables = [
        scored.scores_table("scores", f"{held}{CAVEAT} {_PAPER}", bits="bits per weight", first="recipe"),
        _against_plain("against plain rounding to nearest of the same blocks", scored),
        closer.scores_table(f"CLIP and RESTORE, {place}", f"{held}{CAVEAT}", bits="bits per weight", first="recipe"),
        _against_plain(f"against plain rounding to nearest, {place}", closer),
        alone,
    ]
    notes = [
        f"{place} is {of_use} (plain rounding multiplies perplexity by {times:.3g}).",
        *(f'"{kept}" {says}, over layouts.' for kept in keeps if (says := _tally(scored, kept))),
        _alone_note(alone),
    ]
    return Outcome(
        tables,
        notes + scored.notes() + closer.notes(),
        [families_chart(scored, "block-size")],
        remarks=[CAVEAT],
        claims=_judged(closer, f"{place}, {of_use}", measure, unproven(weights)),
    )


def _layout(
    rounding: Rounding, place: str, kind: type[ClipRestore], scheme: Scheme, keeps: Mapping[str, Any]
) -> Iterator[ModelVariant]:
    method = kind(scheme=scheme, candidates=(inf,))
    for kept in ("", *keeps):
        yield rounding.variant(f"{place}: {kept or 'RTN'}", method, keep=keeps.get(kept), kept=kept, family=place)


def _clipped(
    rounding: Rounding, place: str, kind: type[ClipRestore], scheme: Scheme, keeps: Mapping[str, Any]
) -> Iterator[ModelVariant]:
    own = rounding.bench.config
    searched = kind(scheme=scheme, candidates=own.candidates)
    for kept, keep in ((_RESTORED, keeps[_HELD]), (_RESTORED_OTHERS, keeps[_OTHERS]), (_BARE, None)):
        yield rounding.variant(f"{place}: {kept}", searched, keep=keep, kept=kept, family=place)
    for z in own.fixed:
        kept = f"{_FIXED}{z:g}, restore the super weights"
        method = kind(scheme=scheme, candidates=(z,))
        yield rounding.variant(f"{place}: {kept}", method, keep=keeps[_HELD], kept=kept, family=place)


def _place(scored: GridScores, layouts: Sequence[str], measure: str) -> tuple[str, float]:
    """The layout whose blocks are the largest where plain rounding is of use, and by what it multiplies perplexity; if
    it is of use nowhere, where it is best."""
    times = {place: scored.change(measure, f"{place}: RTN") for place in layouts}
    factors = {place: change.interval.value for place, change in times.items() if change is not None}
    if not factors:
        raise StudfinderError("no layout fits this model", do="Choose other --set layouts")

    def size(place: str) -> float:
        return inf if place.endswith("tensor") else float(place.rpartition(":")[2])

    useful = [place for place in factors if factors[place] < _USABLE]
    place = max(useful, key=size) if useful else min(factors, key=lambda one: factors[one])
    return place, factors[place]


def _against_plain(title: str, scored: GridScores) -> Table:
    pairs = [(one.label, one.label, plain.label) for one, plain in kept_pairs(scored)]
    return scored.changes_table(title, PAIRED, pairs=pairs)


def _tally(scored: GridScores, kept: str) -> str | None:
    return scored.tally([(one.label, plain.label) for one, plain in kept_pairs(scored) if one.kept == kept], KL)


# --- RESTORE alone --------------------------------------------------------------------------------------------------


def _alone(lm: LM, weights: Sequence[SuperWeight], layouts: Mapping[str, Any]) -> Table:
    """What plain rounding does to each super weight, which is all that RESTORE alone could undo."""
    rows: list[tuple[Cell, ...]] = []
    known = {target.name: target for target in targets(lm)}
    for text, (kind, scheme) in layouts.items():
        method = kind(scheme=scheme, candidates=(inf,))
        for weight in weights:
            if weight.parameter in known:  # no expert in a fused parameter
                weight_RC = known[weight.parameter].weight(lm).float()
                extremum, steps = moved(method, weight_RC, weight.row, weight.col)
                rows.append((text, brief(weight), "yes" if extremum else "no", steps))
    return Table(
        title="what RESTORE alone could undo",
        columns=("layout", "super weight", "its block's extremum", "moved by plain rounding, steps"),
        rows=tuple(rows),
        note="With minimum and maximum as the range, a block's extremum is a code (the last bits of fp32 aside): "
        "restoring it changes nothing. Another weight is moved by half a step at most.",
    )


def moved(method: ClipRestore, weight_RC: torch.Tensor, row: int, col: int) -> tuple[bool, float]:
    """Whether a weight is the smallest or largest of its block, and by how many steps plain rounding moves it."""
    matrix = weight_RC.reshape(1, -1) if isinstance(method, Runs) else weight_RC
    height, width = tile(matrix.shape, method.scheme)
    at_row, at_col = divmod(row * weight_RC.shape[1] + col, matrix.shape[1])
    block = matrix[at_row // height * height :, at_col // width * width :][:height, :width]
    bottom, top = method.scheme.codes
    step = (block.max() - block.min()) / (top - bottom)
    made = method.rounded(weight_RC, inf).dequantized()[row, col]
    value = weight_RC[row, col]
    return bool(value in (block.min(), block.max())), float((made - value).abs() / step)


def _alone_note(alone: Table) -> str:
    extrema = [row for row in alone.rows if row[2] == "yes"]
    most = max((row[3] for row in extrema if isinstance(row[3], float)), default=0.0)
    return (
        f"in {len(extrema)} of {len(alone.rows)} cases (layouts x super weights) the weight is its block's extremum "
        f"and plain rounding moves it by {most:.1g} steps at most: there RESTORE alone is a no-op by construction."
    )


# --- claims ---------------------------------------------------------------------------------------------------------


def _judged(scored: GridScores, place: str, measure: str, why: str) -> list[ClaimResult]:
    """By KL, paired; in one layout. The best fixed z is the one with the lowest perplexity, which is of other text."""
    tried = {one.kept: one.label for one in scored.tried()}
    fixed = [kept for kept in tried if kept.startswith(_FIXED)]
    best = min(fixed, key=lambda kept: scored.scores[tried[kept]][measure].value, default="no z is fixed")
    found = []
    for claim, ours, control, plain in (
        (_GROWS, _HELD, _OTHERS, ""),
        (_RESTORES, _RESTORED, _RESTORED_OTHERS, _BARE),
        (_SEARCHED, _RESTORED, best, ""),
    ):
        if not {ours, control, plain} <= tried.keys():
            found.append(judged(claim, None, why="a recipe that it contrasts does not fit this model"))
            continue
        changes = [scored.change(KL, tried[one], tried[other]) for one, other in ((ours, control), (ours, plain))]
        items = f"{len(scored.items(tried[ours], KL, 'kl'))} pieces of our proof text, {place}"
        against = scored.change(KL, tried[control], tried[plain])
        found.append(judged(claim, changes[0], effect=changes[1], control=against, items=items, why=why, cost=_COST))
    return found


_COST = "the same with --set pieces=16: about 20 minutes with smollm2"

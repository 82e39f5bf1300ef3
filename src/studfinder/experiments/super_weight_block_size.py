"""How large may a block be if the super weights are kept (Yu et al. 2024, arXiv 2411.07191, figure 7)?

What it asks: does keeping the super weights let blocks grow? How: 4-bit rounding to nearest, over 1-D runs of n x n
entries of the flattened matrix (what the paper's code calls a block of n x n), over true n x n tiles, and over whole
tensors; plain, with the super weights held out before the range is taken, and with the paper's CLIP-quantise-RESTORE,
whose z is chosen for each matrix on calibration text. Controls: the same with other weights held out, nearest in size
or contribution to the super weights; CLIP with nothing restored; and the largest 0.1 % held out. What to look at:
whether the gain lies where blocks are of use at all, and whether the controls gain as much.

The paper's code falls back to one block a tensor, silently, where n x n does not divide a matrix; here the last run is
shorter. Its printed step, (max - min) / (2^(N-1) - 1), would make 4 bits 3: a row shows it. With minimum and maximum as
the range, restoring alone changes nothing if the super weight is its block's extremum, because that is representable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch
from matplotlib.figure import Figure

from studfinder.edits import matched_controls
from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.experiments.quantize_recipes import CAVEAT, KL, Made, Recipe, RecipeWork, limits_of, listed
from studfinder.experiments.quantize_tables import changes_table, refusals, scores_table, tally
from studfinder.experiments.weights import super_weights_of
from studfinder.models import LM
from studfinder.quantizers import ClipRestore, Quantized, Scheme, hold_out
from studfinder.quantizers import Workbench as Workbench
from studfinder.quantizers.clip_restore import clip_and_round
from studfinder.quantizers.walk import output_error, second_moments, walk
from studfinder.records import Result
from studfinder.report.style import CATEGORIES, GREY, MARKERS, log_ticks, new_figure

EXPERIMENT = Experiment(
    name="super-weight/block-size",
    paper="2411.07191",
    shows="figure 7",
    summary="Does keeping the super weights let blocks of 4-bit weights grow?",
    needs="about 30 minutes and 2 GB with smollm2 on two cores (estimated; plus the scan that finds the super weights)",
    presets={
        "cpu": {
            "limit": 16,
            "pieces": 16,
            "text": "wikitext2",
            "sides": "64,128,256,512",
            "element": "int4",
            "calibration": "wikipedia",
            "calibration_windows": 16,
            "length": 512,
        }
    },
)
_CANDIDATES = ClipRestore().candidates
_PLAIN, HELD, CLIPPED, BARE, _OTHERS, LARGE = (
    "RTN",
    "hold out the super weights",
    "CLIP, restore the super weights",
    "CLIP, restore nothing",
    "hold out others instead",
    "hold out the largest 0.1 %",
)


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Round to nearest in 1-D runs of the flattened matrix, as the super-weight paper's code; clipped first by the z
    with the smallest output error on calibration text, if there are several candidates.

    Attributes:
        scheme: how weights are stored; `block` entries share a range, wherever rows end.
        candidates: values of z; infinity is no clip.
    """

    scheme: Scheme = field(default_factory=Scheme)
    candidates: tuple[float, ...] = (inf,)

    @property
    def calibrated(self) -> bool:
        return len(self.candidates) > 1

    def run(self, bench: Workbench) -> None:
        if not self.calibrated:
            for target in bench.targets:
                weight_RC = target.weight(bench.lm)
                bench.put(target, in_runs(weight_RC, self.scheme, self.candidates[0], bench.held.get(target.name)))
            return
        for block in walk(bench):
            moments = second_moments(block)
            for target in block.targets:
                weight_RC = target.weight(bench.lm).float()
                tried = [in_runs(weight_RC, self.scheme, z, bench.held.get(target.name)) for z in self.candidates]
                errors = [output_error(one.dequantized() - weight_RC, moments[target.name]) for one in tried]
                bench.put(target, tried[errors.index(min(errors))])


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


def in_runs(weight_RC: torch.Tensor, scheme: Scheme, z: float = inf, held_RC: torch.Tensor | None = None) -> InRuns:
    """A matrix (out, in) in runs of `scheme.block` entries, clamped to mean|w| + z std|w| of each run."""
    held = None if held_RC is None else held_RC.reshape(1, -1)
    flat = clip_and_round(weight_RC.reshape(1, -1), scheme, z, held)
    return InRuns(flat.codes_RC.reshape(weight_RC.shape), flat.grid, scheme, flat.kept, None, flat)


def run(bench: Bench) -> Outcome:
    """Every layout with and without keep."""
    outcome = Outcome([])
    measures = [f"perplexity:{bench.settings['text']}", KL]
    for name in bench.models:
        with bench.model(name) as lm:
            weights, findings = super_weights_of(bench, lm)
            taken = {weight.index for weight in weights}
            controls = [matched_controls(lm, weight, findings, count=2, exclude=taken)[0] for weight in weights]
            keeps = {HELD: hold_out(weights), _OTHERS: hold_out(controls), LARGE: hold_out(fraction=0.001)}
            work = RecipeWork(bench=bench, lm=lm, measures=measures, limits=limits_of(bench))
            _add(outcome, name, work.carried_out(list(_recipes(bench, lm, keeps))), measures)
    outcome.notes.append(CAVEAT)
    return outcome


def _recipes(bench: Bench, lm: LM, keeps: dict[str, Any]) -> Iterator[Recipe]:
    element = bench.settings["element"]
    for layout, side, scheme in _layouts(bench, element):
        runs = layout == "runs"
        place = "per tensor" if layout == "tensor" else f"{layout} of {side}" + (f" x {side}" if runs else "")
        plain, clipped = (
            Runs(scheme=scheme, candidates=c) if runs else ClipRestore(scheme=scheme, candidates=c)
            for c in ((inf,), _CANDIDATES)
        )
        methods = {
            _PLAIN: (plain, None),
            HELD: (plain, keeps[HELD]),
            _OTHERS: (plain, keeps[_OTHERS]),
            LARGE: (plain, keeps[LARGE]),
            BARE: (clipped, None),
            CLIPPED: (clipped, keeps[HELD]),
        }
        for label, (method, keep) in methods.items():
            yield Recipe(label=f"{place}: {label}", method=method, keep=keep, kept=label, family=f"{layout} {side}")
    printed = _printed(element)
    if printed is not None:
        first = listed(bench.settings["sides"])[0]
        method = Runs(scheme=Scheme(element=printed, block=int(first) ** 2, zero="float", scale="float32", **_LOOSE))
        yield Recipe(label=f"runs of {first} x {first}: RTN with the printed step", method=method, family="printed")


_LOOSE: dict[str, Any] = {"remainder": "block"}


def _layouts(bench: Bench, element: str) -> Iterator[tuple[str, int, Scheme]]:
    """Float minimum and fp32 scales, as the paper's code has them but for their type."""
    own: dict[str, Any] = {"element": element, "zero": "float", "scale": "float32"}
    sides = [int(side) for side in listed(bench.settings["sides"])]
    for side in sides:
        yield "runs", side, Scheme(block=side * side, **own, **_LOOSE)
    for side in sides:
        yield "tiles", side, Scheme(block=(side, side), **own, **_LOOSE)
    yield "tensor", 0, Scheme(block="tensor", **own)


def _printed(element: str) -> Any:
    """The element whose full range has as many steps as the printed formula gives this one: 2^(N-1) - 1."""
    bits = int(element.removeprefix("int"))
    return f"int{bits - 1}" if bits > 2 else None


def _add(outcome: Outcome, name: str, made: Sequence[Made], measures: Sequence[str]) -> None:
    paper = (
        "The paper (average of seven tasks, INT4, blocks of 128^2, 256^2, 512^2 and 1024^2 entries): Llama-7B RTN "
        "66.21, 63.41, 50.51, 27.55, theirs 66.21, 63.41, 57.85, 45.40; Mistral-7B RTN 70.29, 64.46, 36.88, 28.13, "
        "theirs 72.26, 65.37, 45.28, 33.82; uncompressed Llama-7B 70.1."
    )
    held = "What is held out sets no range and keeps its value; CLIP has no clip among its candidates."
    outcome.tables.append(scores_table(name, made, measures, f"{held} {paper}", "bits per weight"))
    plain = {one.recipe.family: one for one in made if one.recipe.kept == _PLAIN and not one.refused}
    pairs = [
        (one, plain[one.recipe.family])
        for one in made
        if one.recipe.family in plain and one.recipe.kept not in ("", _PLAIN) and not one.refused
    ]
    rows = [(one.recipe.label, one, other) for one, other in pairs]
    outcome.tables.append(changes_table(f"{name}: against plain RTN of the same blocks", rows, measures, "Paired."))
    perplexity = measures[0]
    for label in (HELD, CLIPPED, _OTHERS, BARE, LARGE):
        says = tally([pair for pair in pairs if pair[0].recipe.kept == label], perplexity)
        if says:
            outcome.notes.append(f'{name}: "{label}" {says}, over layouts of blocks.')
    outcome.notes += _useful(name, made, pairs, perplexity) + refusals(name, made)
    outcome.data.setdefault("models", {})[name] = {
        "original": made[0].scores[perplexity].value,
        "points": [
            [
                one.recipe.family.split()[0],
                int(one.recipe.family.split()[1]),
                one.recipe.kept,
                one.scores[perplexity].value,
            ]
            for one in made
            if one.recipe.kept and not one.refused
        ],
    }


def _useful(name: str, made: Sequence[Made], pairs: Sequence[tuple[Made, Made]], measure: str) -> list[str]:
    """What keeping gains in the layout where plain rounding is best: where anyone would use it."""
    ours = [pair for pair in pairs if pair[0].recipe.kept == CLIPPED]
    if not ours:
        return []
    kept, plain = min(ours, key=lambda pair: pair[1].scores[measure].value)
    base = made[0].scores[measure].value
    says = tally([(kept, plain)], measure)
    return [
        f"{name}: in the layout where RTN is best ({plain.recipe.family}, {plain.scores[measure].value / base:.3g} "
        f"times the original's perplexity), the paper's method {says}."
    ]


def draw(result: Result, width: float) -> dict[str, Figure]:
    """Perplexity over the side of a block, runs and tiles apart; the whole tensor on the right."""
    return {
        "block-size" + (f"-{place + 1}" if place else ""): _lines(name, seen, width)
        for place, (name, seen) in enumerate(result.data["models"].items())
    }


def _lines(name: str, seen: dict[str, Any], width: float) -> Figure:
    wide = width > 600
    figure = new_figure(width, 420 if wide else 700)
    panels = figure.subplots(1, 2, sharey=True) if wide else figure.subplots(2, 1)
    shown = {_PLAIN: GREY, HELD: CATEGORIES[0], CLIPPED: CATEGORIES[1], _OTHERS: CATEGORIES[2], LARGE: CATEGORIES[3]}
    markers = dict(zip(shown, ("x", *MARKERS), strict=True))
    sides = sorted({side for _, side, *_ in seen["points"] if side})
    places = {side: place for place, side in enumerate([*sides, 0])}
    for axes, layout in zip(panels, ("runs", "tiles"), strict=True):
        for kept, colour in shown.items():
            own = [
                (places[side], value)
                for of, side, label, value in seen["points"]
                if label == kept and of in (layout, "tensor")
            ]
            axes.plot(*zip(*sorted(own), strict=True), f"{markers[kept]}-", color=colour, markersize=5, label=kept)
        axes.axhline(seen["original"], color=GREY, linestyle=":", linewidth=1)
        axes.annotate("original", (0, seen["original"]), va="bottom", fontsize=11, color=GREY)
        axes.set_xticks(list(places.values()), [*(f"{side}²" for side in sides), "tensor"])
        axes.set_yscale("log")
        log_ticks(axes.yaxis)
        axes.set_title(f"1-D runs ({name})" if layout == "runs" else "2-D tiles")
        axes.set_xlabel("entries that share a range")
        axes.grid(axis="y")
    panels[0].set_ylabel("perplexity")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=3 if wide else 1)
    return figure

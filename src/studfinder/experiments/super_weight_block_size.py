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

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import torch

from studfinder.experiments.weights import controls_of, super_weights_of
from studfinder.models import LM
from studfinder.quantizers import ClipRestore, Quantized, Scheme, Workbench, hold_out
from studfinder.records.config import option
from studfinder.studies import GridScores, ModelVariant
from studfinder.studies.experiment import Bench, Experiment, Outcome
from studfinder.studies.rounding import CAVEAT, CalibratedConfig, Rounding, families_chart, kept_pairs


@dataclass(frozen=True, kw_only=True)
class BlockSizeConfig(CalibratedConfig):
    """Which blocks of what."""

    text: str = option("wikitext2", help="The text of the perplexity.")
    sides: tuple[int, ...] = option("64,128,256,512", help="n, of blocks of n x n entries.", commas=True, least=1)
    element: str = option("int4", help="What numbers are rounded to.")


EXPERIMENT = Experiment(
    name="super-weight/block-size",
    paper="2411.07191",
    shows="figure 7",
    summary="Does keeping the super weights let blocks of 4-bit weights grow?",
    needs="about 30 minutes and 2 GB with smollm2 on two cores (estimated; plus the scan that finds the super weights)",
    presets={"cpu": BlockSizeConfig()},
)
_PLAIN, _HELD, _CLIPPED, _BARE, _OTHERS, _LARGE = (
    "RTN",
    "hold out the super weights",
    "CLIP, restore the super weights",
    "CLIP, restore nothing",
    "hold out others instead",
    "hold out the largest 0.1 %",
)
_PAPER = (
    "The paper (average of seven tasks, INT4, blocks of 128^2, 256^2, 512^2 and 1024^2 entries): Llama-7B RTN 66.21, "
    "63.41, 50.51, 27.55, theirs 66.21, 63.41, 57.85, 45.40; Mistral-7B RTN 70.29, 64.46, 36.88, 28.13, theirs 72.26, "
    "65.37, 45.28, 33.82; uncompressed Llama-7B 70.1."
)


@dataclass(frozen=True, kw_only=True)
class Runs(ClipRestore):
    """Round to nearest in 1-D runs of the flattened matrix, as the super-weight paper's code: `block` entries share a
    range, wherever rows end. Clipped first, as `ClipRestore`, if there are several candidates."""

    candidates: tuple[float, ...] = (inf,)

    @property
    def calibrated(self) -> bool:
        return len(self.candidates) > 1

    def run(self, bench: Workbench) -> None:
        if self.calibrated:
            super().run(bench)
            return
        for target in bench.targets:
            held_RC = bench.held.get(target.name)
            bench.put(target, self.rounded(target.weight(bench.lm), self.candidates[0], held_RC))

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


def run(bench: Bench, lm: LM) -> Outcome:
    """Every layout with and without keep."""
    weights, findings = super_weights_of(bench, lm)
    controls = controls_of(lm, weights, findings)
    keeps = {_HELD: hold_out(weights), _OTHERS: hold_out(controls), _LARGE: hold_out(fraction=0.001)}
    rounding = Rounding(bench, lm)
    measure = f"perplexity:{bench.config.text}"
    scored = rounding.scored(list(_variants(rounding, keeps)), [measure])
    held = "What is held out sets no range and keeps its value; CLIP has no clip among its candidates."
    pairs = kept_pairs(scored)
    rows = [(one.label, one.label, plain.label) for one, plain in pairs]
    tables = [
        scored.scores_table("scores", f"{held} {CAVEAT} {_PAPER}", bits="bits per weight", first="recipe"),
        scored.changes_table("against plain RTN of the same blocks", "Paired.", pairs=rows),
    ]
    notes = []
    for kept in (_HELD, _CLIPPED, _OTHERS, _BARE, _LARGE):
        says = scored.tally([(one.label, plain.label) for one, plain in pairs if one.kept == kept], measure)
        notes += [f'"{kept}" {says}, over layouts of blocks.'] if says else []
    notes += _useful(scored, [pair for pair in pairs if pair[0].kept == _CLIPPED], measure)
    return Outcome(tables, notes + scored.notes(), [families_chart(scored, "block-size")], remarks=[CAVEAT])


def _variants(rounding: Rounding, keeps: Mapping[str, Any]) -> Iterator[ModelVariant]:
    """Every layout with a float minimum and fp32 scales, as the paper's code has them but for their type."""
    sides, element = rounding.bench.config.sides, rounding.bench.config.element
    own: dict[str, Any] = {"element": element, "zero": "float", "scale": "float32"}
    loose: dict[str, Any] = {**own, "remainder": "block"}
    layouts: dict[str, tuple[type[ClipRestore], Scheme]] = {
        **{f"runs of {n} x {n}": (Runs, Scheme(block=n * n, **loose)) for n in sides},
        **{f"tiles of {n}": (ClipRestore, Scheme(block=(n, n), **loose)) for n in sides},
        "per tensor": (ClipRestore, Scheme(block="tensor", **own)),
    }
    for place, (kind, scheme) in layouts.items():
        plain, clipped = (kind(scheme=scheme, candidates=zs) for zs in ((inf,), ClipRestore().candidates))
        yield rounding.variant(f"{place}: {_PLAIN}", plain, family=place)
        for kept, method in ((_HELD, plain), (_OTHERS, plain), (_LARGE, plain), (_BARE, clipped), (_CLIPPED, clipped)):
            keep = keeps.get(_HELD if kept == _CLIPPED else kept)
            yield rounding.variant(f"{place}: {kept}", method, keep=keep, kept=kept, family=place)
    bits = element.removeprefix("int")
    if bits.isdigit() and int(bits) > 2:  # whose full range has the printed formula's steps: 2^(N-1) - 1
        printed = Scheme(block=sides[0] ** 2, **{**loose, "element": f"int{int(bits) - 1}"})
        place = f"runs of {sides[0]} x {sides[0]}"
        yield rounding.variant(f"{place}: RTN with the printed step", Runs(scheme=printed))


def _useful(scored: GridScores, pairs: list[tuple[ModelVariant, ModelVariant]], measure: str) -> list[str]:
    """What the paper's method gains in the layout where plain rounding is best: where anyone would use it."""
    if not pairs:
        return []

    def value(label: str) -> float:
        return scored.scores[label][measure].value

    kept, plain = min(pairs, key=lambda pair: value(pair[1].label))
    return [
        f"in the layout where RTN is best ({plain.family}, {value(plain.label) / value(scored.original):.3g} times "
        f"the original's perplexity), the paper's method {scored.tally([(kept.label, plain.label)], measure)}."
    ]

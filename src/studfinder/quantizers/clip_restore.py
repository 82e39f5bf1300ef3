"""CLIP-quantise-RESTORE: clamp a matrix, round it to nearest, put the super weights back (Yu et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf

import torch

from studfinder.errors import StudfinderError
from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.finite import finite_weight
from studfinder.quantizers.grid import Quantized, kept_entries, pieces_of, quantize_weight, untiled
from studfinder.quantizers.scheme import Scheme
from studfinder.quantizers.walk import output_error, second_moments, walk
from studfinder.records.config import Config, option


@dataclass(frozen=True, kw_only=True)
class ClipRestore(Config):
    """Clamp the entries of each block to mean|w| + z std|w|, round to nearest, and restore what is held out.

    The paper's CLIP is a clamp by a "z-score" of the magnitudes; z minimises the reconstruction error on training
    text (arXiv 2411.07191, §5.1 and its code; layer scope, candidates and error are not stated there). Here z is
    chosen for each matrix by the error of its output on calibration text, among candidates that hold "no clip", and
    never on the text that the model is judged on. What is to be restored is given as `keep`; entries that are clamped
    and not kept stay clamped.

    Attributes:
        scheme: how weights are stored.
        candidates: values of z; infinity is no clip. One alone is taken for every matrix, without calibration text.
    """

    scheme: Scheme = field(default_factory=lambda: Scheme(zero="integer"))
    candidates: tuple[float, ...] = option((inf, 20.0, 15.0, 12.0, 9.0, 7.0, 5.0, 4.0, 3.0), above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.candidates:
            raise StudfinderError("no candidates for z", expected="at least one")

    @property
    def calibrated(self) -> bool:
        """Whether there is something to choose."""
        return len(self.candidates) > 1

    def run(self, bench: Workbench) -> None:
        if not self.calibrated:
            for target in bench.targets:
                own, held_RC = bench.own(self, target.name), bench.held.get(target.name)
                bench.put(target, own.rounded(finite_weight(target, bench.lm), self.candidates[0], held_RC))
            return
        clipped: dict[float, int] = {}
        for block in walk(bench):
            moments = second_moments(block)
            for target in block.targets:
                weight_RC = finite_weight(target, bench.lm)
                own = bench.own(self, target.name)
                z, found = own.best(weight_RC, moments[target.name], bench.held.get(target.name))
                clipped[z] = clipped.get(z, 0) + 1
                bench.put(target, found)
        counts = ", ".join(f"{'no clip' if z == inf else f'z = {z:g}'}: {n}" for z, n in sorted(clipped.items()))
        bench.notes.append(f"matrices by the clip that was chosen: {counts}")

    def best(
        self, weight_RC: torch.Tensor, moment_CC: torch.Tensor, held_RC: torch.Tensor | None
    ) -> tuple[float, Quantized]:
        """The candidate with the smallest output error, and the matrix quantised with it."""
        tried = []
        for z in self.candidates:
            found = self.rounded(weight_RC, z, held_RC)
            tried.append((output_error(found.dequantized() - weight_RC, moment_CC), -z, found))
        _, minus_z, found = min(tried, key=lambda one: one[:2])
        return -minus_z, found

    def rounded(self, weight_RC: torch.Tensor, z: float, held_RC: torch.Tensor | None = None) -> Quantized:
        """Each block of a matrix (out, in) clamped to mean|w| + z std|w| of its entries, held-out ones included, and
        rounded; then restored."""
        if z == inf:
            return quantize_weight(weight_RC, self.scheme, held_RC=held_RC)
        limits = []
        for _, tiles, _ in pieces_of(weight_RC.abs(), (), self.scheme):
            limit = tiles.mean(dim=(1, 3), keepdim=True) + z * tiles.std(dim=(1, 3), keepdim=True, unbiased=False)
            limits.append(limit.expand_as(tiles))
        limit_RC = untiled(torch.cat(limits), weight_RC.shape)
        found = quantize_weight(weight_RC.clamp(-limit_RC, limit_RC), self.scheme, held_RC=held_RC)
        return replace(found, kept=kept_entries(weight_RC, held_RC))

"""Clip search: how far to shrink the range of each block so that its reconstruction error is smallest."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from studfinder.errors import StudfinderError
from studfinder.quantizers.grid import codes, dequantized, grid_of, ranges, tile_sums
from studfinder.quantizers.scheme import Scheme


@dataclass(frozen=True, kw_only=True)
class Clip:
    """The candidates and the error of a clip search; no clip is always among them.

    Attributes:
        steps: how many candidates, evenly spaced from 1 downwards.
        lowest: the smallest factor.
        norm: the exponent of the error |w - q|^norm: 2.4 as in GPTQ's own search (IST-DASLab `quant.py`, which tries
            80 factors down to 0.2).
    """

    steps: int = 16
    lowest: float = 0.6
    norm: float = 2.4

    def __post_init__(self) -> None:
        if self.steps < 2 or not 0 < self.lowest < 1 or self.norm <= 0:
            raise StudfinderError(
                f"clip search with {self.steps} steps down to {self.lowest}, norm {self.norm}",
                expected="at least 2 steps, a lowest factor between 0 and 1, a norm above 0",
            )


def search(
    weight_RC: torch.Tensor,
    scheme: Scheme,
    clip: Clip,
    *,
    held_RC: torch.Tensor | None = None,
    importance_C: torch.Tensor | None = None,
) -> torch.Tensor:
    """The factor for each block, (row blocks, col blocks), by the error of rounding the weights.

    Args:
        held_RC: entries that neither set the range nor count as error.
        importance_C: weights the error of each input channel, e.g. the mean square of what comes in there.
    """
    weight_RC = weight_RC.float()
    low, high = ranges(weight_RC, scheme, held_RC)
    best = torch.ones_like(low)
    least: torch.Tensor | None = None
    for factor in torch.linspace(1.0, clip.lowest, clip.steps).tolist():
        grid = grid_of(low * factor, high * factor, scheme)
        error = dequantized(codes(weight_RC, grid, scheme), grid, scheme).sub_(weight_RC).abs_().pow_(clip.norm)
        if importance_C is not None:
            error *= importance_C
        if held_RC is not None:
            error.masked_fill_(held_RC, 0.0)
        sums = tile_sums(error, scheme)
        better = sums < least if least is not None else torch.zeros_like(sums, dtype=torch.bool)
        best = torch.where(better, torch.full_like(best, factor), best)
        least = sums if least is None else torch.minimum(sums, least)
    return best

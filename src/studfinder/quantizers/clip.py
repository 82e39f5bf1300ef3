"""Clip search: how far to shrink the range of each block so that its reconstruction error is smallest."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from studfinder.quantizers.grid import RoundingGrid, fits, grid_of, in_steps, pieces_of, ranges, rounded
from studfinder.quantizers.scheme import Scheme
from studfinder.records.config import Config, option


@dataclass(frozen=True, kw_only=True)
class Clip(Config):
    """The candidates and the error of a clip search; no clip is always among them.

    Attributes:
        steps: how many candidates, evenly spaced from 1 downwards.
        lowest: the smallest factor.
        norm: the exponent of the error |w - q|^norm. A smaller one clips more of what stands out.
        weight: the exponent of the |w| by which an error counts. With 0 all count alike, as in GPTQ's own search
            (IST-DASLab `quant.py`: norm 2.4, 80 factors down to 0.2), which clips the few large numbers that carry a
            model; llama.cpp counts by w^2.
    """

    steps: int = option(16, least=2)
    lowest: float = option(0.6, above=0, below=1)
    norm: float = option(2.0, above=0)
    weight: float = option(1.0, least=0)


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
    low, high = ranges(weight_RC, scheme, held_RC)
    factors = torch.linspace(1.0, clip.lowest, clip.steps)
    grids = [grid_of(low * factor, high * factor, scheme) for factor in factors.tolist()]
    best = torch.zeros_like(low, dtype=torch.long)
    counts = _counts(weight_RC, scheme, held_RC, importance_C)
    counted = iter(()) if counts is None else pieces_of(counts, (), scheme)
    for part, tiles, _ in pieces_of(weight_RC, (), scheme):
        count = None if counts is None else next(counted)[1]
        if clip.weight:
            size = tiles.float().abs().pow_(clip.weight)
            count = size if count is None else size * count
        errors = torch.stack([_error(tiles, grid, part, scheme, clip.norm, count) for grid in grids])
        best[part] = errors.argmin(dim=0)  # the first of equals: no clip where it is no worse
    return factors.to(low.device)[best]


def _counts(
    weight_RC: torch.Tensor, scheme: Scheme, held_RC: torch.Tensor | None, importance_C: torch.Tensor | None
) -> torch.Tensor | None:
    """How much the error of each entry counts, (out, in), so that what pads a last block counts nothing; None if all
    count alike."""
    if importance_C is None and held_RC is None and fits(weight_RC.shape, scheme):
        return None
    ones = torch.ones_like(weight_RC, dtype=torch.float32)
    counts = ones if importance_C is None else importance_C.float().expand(weight_RC.shape)
    return counts if held_RC is None else counts.masked_fill(held_RC, 0.0)


def _error(
    tiles: torch.Tensor, grid: RoundingGrid, part: slice, scheme: Scheme, norm: float, count: torch.Tensor | None
) -> torch.Tensor:
    """Sum of |w - q|^norm over each block of a piece."""
    step = grid.step[part, None, :, None]
    scaled = in_steps(tiles, step, None if grid.zero is None else grid.zero[part, None, :, None], scheme)
    off = rounded(scaled.clone(), scheme).sub_(scaled)
    # exp2(norm log2 |off|) takes half the time of a power; log2 of 0 is -inf, and its exp2 is 0 again.
    powers = off.square_() if norm == 2 else off.abs_().log2_().mul_(norm).exp2_()
    if count is not None:
        powers *= count
    return powers.sum(dim=(1, 3)) * step[:, 0, :, 0].pow(norm)

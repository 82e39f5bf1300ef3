"""Pure functions on fp32 matrices: fit a grid to each block, round to it, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from studfinder.errors import StudfinderError
from studfinder.quantizers.scheme import Scheme, bits_per_weight, tile

_FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
# Midpoints; a tie goes to the even mantissa, which is up for 0.75, 1.75 and 3.5, so these lie a hair lower.
_FP4_EDGES = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
_FP4_EDGES[1::2] = torch.nextafter(_FP4_EDGES[1::2], torch.zeros(3))


_PIECE = 1 << 18
"""Entries that are worked on at a time: their temporaries fit in a core's cache."""


@dataclass(frozen=True)
class RoundingGrid:
    """What a scheme's codes mean, by block.

    Attributes:
        scale: (row blocks, col blocks) fp32, holding values that the scheme's scale type can hold.
        zero: the same shape: the integer zero point (a code), or the float that code 0 stands for; None if symmetric.
        tensor_scale: fp32 scalar by which stored scales are divided ("e4m3" only), or None.
    """

    scale: torch.Tensor
    zero: torch.Tensor | None = None
    tensor_scale: torch.Tensor | None = None

    @property
    def step(self) -> torch.Tensor:
        """The distance that one code stands for, (row blocks, col blocks)."""
        return self.scale if self.tensor_scale is None else self.scale / self.tensor_scale


@dataclass(frozen=True)
class Kept:
    """Entries that stay as they were: flat indices into (out, in), and their values in the weight's own dtype."""

    index_N: torch.Tensor
    value_N: torch.Tensor


@dataclass(frozen=True)
class Quantized:
    """A quantised matrix (out, in).

    Attributes:
        codes_RC: int8 (signed), uint8 for a float zero point and for fp4 (sign bit and place), float8_e4m3fn for fp8.
        grid: what they mean.
        scheme: how they were made.
        kept: entries that were held out, or None.
        group_C: which column block each column belongs to, where an order other than the stored one made the blocks
            (GPTQ's act-order); None if blocks are runs of columns.
    """

    codes_RC: torch.Tensor
    grid: RoundingGrid
    scheme: Scheme
    kept: Kept | None = None
    group_C: torch.Tensor | None = None

    @property
    def bits(self) -> float:
        """True bits a weight."""
        extra = 0.0 if self.group_C is None else 32 * self.group_C.numel() / self.codes_RC.numel()
        kept = 0 if self.kept is None else self.kept.index_N.numel()
        return bits_per_weight(self.codes_RC.shape, self.scheme, kept) + extra

    def dequantized(self) -> torch.Tensor:
        """The matrix that the codes stand for, kept entries put back, (out, in) fp32."""
        weight_RC = dequantized(self.codes_RC, self.grid, self.scheme, group_C=self.group_C)
        if self.kept is not None:
            rows, cols = self.kept.index_N // weight_RC.shape[1], self.kept.index_N % weight_RC.shape[1]
            weight_RC[rows, cols] = self.kept.value_N.to(weight_RC.dtype)
        return weight_RC


def quantize_weight(
    weight_RC: torch.Tensor,
    scheme: Scheme,
    *,
    held_RC: torch.Tensor | None = None,
    clip: torch.Tensor | float | None = None,
) -> Quantized:
    """Round a matrix to nearest. Entries that are held out do not set the range and keep their value.

    Args:
        weight_RC: (out, in), any float dtype; computed in fp32.
        held_RC: bool, True where an entry is held out.
        clip: see `fit_grid`.

    Raises:
        StudfinderError: the blocks do not fit the shape, or a weight is not finite.
    """
    grid = fit_grid(weight_RC, scheme, held_RC=held_RC, clip=clip)
    return Quantized(codes(weight_RC, grid, scheme), grid, scheme, kept_entries(weight_RC, held_RC))


def fit_grid(
    weight_RC: torch.Tensor,
    scheme: Scheme,
    *,
    held_RC: torch.Tensor | None = None,
    clip: torch.Tensor | float | None = None,
) -> RoundingGrid:
    """The grid of each block by its smallest and largest entry.

    Args:
        weight_RC: (out, in).
        held_RC: bool, True for entries that must not set the range.
        clip: factors that shrink the range of each block, a number or (row blocks, col blocks).

    Raises:
        StudfinderError: the blocks do not fit the shape, or a weight is not finite.
    """
    low, high = ranges(weight_RC, scheme, held_RC)
    if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise StudfinderError("a weight is NaN or infinite", expected="finite weights")
    if clip is not None:
        low, high = low * clip, high * clip
    return grid_of(low, high, scheme)


def ranges(
    weight_RC: torch.Tensor, scheme: Scheme, held_RC: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest and the largest entry of each block, (row blocks, col blocks) each; 0 where all are held out."""
    if held_RC is None and fits(weight_RC.shape, scheme):
        found = []
        for _, tiles, _ in pieces_of(weight_RC, (), scheme):
            piece = tiles.float()
            found.append((piece.amin(dim=(1, 3)), piece.amax(dim=(1, 3))))
        return torch.cat([low for low, _ in found]), torch.cat([high for _, high in found])
    held_RC = torch.zeros_like(weight_RC, dtype=torch.bool) if held_RC is None else held_RC
    tiles, unset = _tiled(weight_RC.float(), scheme, fill=0.0), _tiled(held_RC, scheme, fill=True)
    low = tiles.masked_fill(unset, float("inf")).amin(dim=(1, 3))
    high = tiles.masked_fill(unset, -float("inf")).amax(dim=(1, 3))
    empty = unset.all(dim=3).all(dim=1)
    return low.masked_fill(empty, 0.0), high.masked_fill(empty, 0.0)


def fits(shape: torch.Size, scheme: Scheme) -> bool:
    """Whether whole blocks fill a matrix of this shape."""
    height, width = tile(shape, scheme)
    return shape[0] % height == 0 and shape[1] % width == 0


def grid_of(low: torch.Tensor, high: torch.Tensor, scheme: Scheme) -> RoundingGrid:
    """The grid that spans [low, high] in each block, fp32, scales rounded to the type they are stored in."""
    bottom, top = scheme.codes
    if scheme.zero == "none":
        peak = torch.maximum(low.abs(), high.abs())
        if scheme.scale == "e8m0":
            return RoundingGrid(_power_of_two(peak, top))
        wide = scheme.integer and not scheme.narrow
        step = peak / ((top - bottom) / 2 if wide else top)
        if scheme.scale == "e4m3":
            return _two_level(step)
        return RoundingGrid(_stored(step, scheme))
    if scheme.zero == "float":
        step = _stored((high - low) / (top - bottom), scheme)
        return RoundingGrid(step, low.to(getattr(torch, scheme.scale)).float())
    low, high = low.clamp(max=0), high.clamp(min=0)
    span = (high - low) / (top - bottom)
    if scheme.scale in ("e8m0", "e4m3"):
        raise StudfinderError(f"{scheme.scale} scales with a zero point", expected="a symmetric scheme")
    step = _stored(span, scheme)
    return RoundingGrid(step, (bottom - low / step).round().clamp(bottom, top))


def codes(
    weight_RC: torch.Tensor, grid: RoundingGrid, scheme: Scheme, *, group_C: torch.Tensor | None = None
) -> torch.Tensor:
    """The nearest code of every entry, (out, in); see `Quantized.codes_RC` for the dtypes."""
    made = [_codes(*piece, scheme) for piece in _pieces(weight_RC, grid, scheme, group_C)]
    return untiled(torch.cat(made), weight_RC.shape)


def dequantized(
    codes_RC: torch.Tensor, grid: RoundingGrid, scheme: Scheme, *, group_C: torch.Tensor | None = None
) -> torch.Tensor:
    """What codes stand for, (out, in) fp32."""
    made = [_values(*piece, scheme) for piece in _pieces(codes_RC, grid, scheme, group_C)]
    return untiled(torch.cat(made), codes_RC.shape)


def rounded(scaled: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Numbers in units of a step, zero point added, to the value of their nearest code; fp32, in place."""
    bottom, top = scheme.codes
    if scheme.integer:
        return scaled.round_().clamp_(bottom, top)
    scaled.clamp_(bottom, top)
    if scheme.element == "fp8":
        return scaled.to(torch.float8_e4m3fn).float()
    return _FP4.to(scaled.device)[torch.bucketize(scaled.abs(), _FP4_EDGES.to(scaled.device))].copysign_(scaled)


def in_steps(tiles: torch.Tensor, step: torch.Tensor, zero: torch.Tensor | None, scheme: Scheme) -> torch.Tensor:
    """Entries in units of their block's step, zero point added, fp32."""
    own = tiles.to(torch.float32, copy=True)
    if zero is None:
        return own.div_(step)
    if scheme.zero == "float":
        return own.sub_(zero).div_(step)
    return own.div_(step).add_(zero)


def out_of_steps(own: torch.Tensor, step: torch.Tensor, zero: torch.Tensor | None, scheme: Scheme) -> torch.Tensor:
    """The other way round: what values of codes stand for; fp32, in place."""
    if zero is None:
        return own.mul_(step)
    return own.mul_(step).add_(zero) if scheme.zero == "float" else own.sub_(zero).mul_(step)


def nearest(x: torch.Tensor, step: torch.Tensor, zero: torch.Tensor | None, scheme: Scheme) -> torch.Tensor:
    """Numbers rounded to a grid that broadcasts to them, and back; fp32. Integer zero points are codes."""
    return out_of_steps(rounded(in_steps(x, step, zero, scheme), scheme), step, zero, scheme)


def pieces_of(
    weight_RC: torch.Tensor, blocks: Sequence[torch.Tensor | None], scheme: Scheme
) -> Iterator[tuple[slice, torch.Tensor, list[torch.Tensor | None]]]:
    """A matrix in pieces that stay in the cache: which row blocks, their tiles (row blocks, rows, col blocks, cols),
    and what each of `blocks` (row blocks, col blocks) says of them, ready to broadcast."""
    tiles = _tiled(weight_RC, scheme, fill=0)
    count = max(1, _PIECE // max(1, tiles[0].numel()))
    for start in range(0, len(tiles), count):
        part = slice(start, start + count)
        yield part, tiles[part], [None if b is None else b[part, None, :, None] for b in blocks]


def _pieces(
    matrix_RC: torch.Tensor, grid: RoundingGrid, scheme: Scheme, group_C: torch.Tensor | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    step, zero = grid.step, grid.zero
    if group_C is not None:  # every column looks up its block
        yield (
            matrix_RC[:, None, :, None],
            step[:, group_C][:, None, :, None],
            None if zero is None else zero[:, group_C][:, None, :, None],
        )
        return
    for _, tiles, (own_step, own_zero) in pieces_of(matrix_RC, (step, zero), scheme):
        assert own_step is not None
        yield tiles, own_step, own_zero


def _codes(tiles: torch.Tensor, step: torch.Tensor, zero: torch.Tensor | None, scheme: Scheme) -> torch.Tensor:
    scaled = in_steps(tiles, step, zero, scheme)
    if scheme.integer:
        return rounded(scaled, scheme).to(torch.uint8 if scheme.zero == "float" else torch.int8)
    if scheme.element == "fp8":
        return scaled.clamp_(*scheme.codes).to(torch.float8_e4m3fn)
    place = torch.bucketize(scaled.abs().contiguous(), _FP4_EDGES.to(scaled.device))
    return (place + 8 * ((scaled < 0) & (place > 0))).to(torch.uint8)  # no negative zero


def _values(tiles: torch.Tensor, step: torch.Tensor, zero: torch.Tensor | None, scheme: Scheme) -> torch.Tensor:
    if scheme.element == "fp4":
        value = _FP4.to(tiles.device)[(tiles & 7).long()]
        return torch.where(tiles > 7, -value, value) * step
    return out_of_steps(tiles.float(), step, zero, scheme)


def largest(weight_RC: torch.Tensor, count: int) -> torch.Tensor:
    """A mask of the largest entries by magnitude, so many of them."""
    mask = torch.zeros(weight_RC.shape, dtype=torch.bool, device=weight_RC.device)
    mask.view(-1)[weight_RC.abs().reshape(-1).topk(count).indices] = True
    return mask


def kept_entries(weight_RC: torch.Tensor, held_RC: torch.Tensor | None) -> Kept | None:
    """The entries that are held out; None if there are none."""
    if held_RC is None or not held_RC.any():
        return None
    index_N = held_RC.flatten().nonzero()[:, 0]
    return Kept(index_N, weight_RC.reshape(-1)[index_N].clone())


def untiled(tiles: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Tiles, see `pieces_of`, as the matrix that they were taken from."""
    rows, cols = shape
    matrix = tiles.reshape(tiles.shape[0] * tiles.shape[1], -1)
    return matrix if matrix.shape == shape else matrix[:rows, :cols].contiguous()


def _tiled(matrix_RC: torch.Tensor, scheme: Scheme, fill: float | bool) -> torch.Tensor:
    """As (row blocks, rows, col blocks, cols); padded with `fill` where a last block is smaller."""
    rows, cols = matrix_RC.shape
    height, width = tile(matrix_RC.shape, scheme)
    if rows % height or cols % width:
        matrix_RC = F.pad(matrix_RC, (0, -cols % width, 0, -rows % height), value=fill)
    return matrix_RC.reshape(-1, height, matrix_RC.shape[1] // width, width)


def _stored(step: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Steps rounded to the type they are stored in. A block of zeros gets 1; none underflows to 0 otherwise."""
    dtype = getattr(torch, scheme.scale)
    rounded = step.clamp(max=torch.finfo(dtype).max).to(dtype).float()
    smallest = torch.finfo(dtype).smallest_normal
    return torch.where(step > 0, rounded.clamp(min=smallest), torch.ones_like(step))


def with_tensor_scale(grid: RoundingGrid, whole: torch.Tensor) -> RoundingGrid | None:
    """The same grid of "e4m3" scales with another power of two for the tensor; None where a scale cannot be held."""
    assert grid.tensor_scale is not None
    scale = grid.scale * (whole / grid.tensor_scale)
    held = scale.clamp(max=448.0).to(torch.float8_e4m3fn).float()
    return RoundingGrid(scale, None, whole) if torch.equal(held, scale) else None


def _power_of_two(peak: torch.Tensor, top: float) -> torch.Tensor:
    """2^e with e such that the peak lands in the element's largest binade.

    As vLLM and compressed-tensors, a peak above 1.75 of its binade counts to the next one, so that what is clipped is
    at most 7/6 of the largest number; the OCP specification's plain floor clips up to 8/6.
    """
    mantissa, exponent = torch.frexp(peak)  # mantissa in [0.5, 1)
    exponent = exponent - 1 + (mantissa >= 0.875).to(exponent.dtype)
    largest = 2 if top == 6.0 else 8 if top == 448.0 else int(top).bit_length() - 1
    power = torch.ldexp(torch.ones_like(peak), (exponent - largest).clamp(-126, 127))
    return torch.where(peak > 0, power, torch.ones_like(peak))


def _two_level(step: torch.Tensor) -> RoundingGrid:
    """Scales in e4m3, and a power of two for the tensor that brings the largest of them to between 224 and 448.

    A power of two, unlike 448 over the largest, can be traded for that of another matrix without rounding a scale
    anew: engines that fuse matrices have one number for all of them.
    """
    largest = step.max()
    exponent = torch.frexp(448.0 / largest).exponent - 1
    whole = torch.where(largest > 0, torch.ldexp(torch.ones_like(largest), exponent), torch.ones_like(largest))
    scale = (step * whole).clamp(max=448.0).to(torch.float8_e4m3fn).float()
    # A block far below the tensor's largest would round to 0; it gets the smallest scale there is.
    return RoundingGrid(torch.where(scale > 0, scale, torch.full_like(scale, 2.0**-9)), None, whole)

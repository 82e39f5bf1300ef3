"""A scheme says how the numbers of a matrix are stored: element x block x scale x zero point, as one small record."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from studfinder.errors import StudfinderError
from studfinder.records.config import Config

Element = Literal["int2", "int3", "int4", "int5", "int6", "int7", "int8", "fp8", "fp4"]
Zero = Literal["none", "integer", "float"]
ScaleType = Literal["float32", "bfloat16", "float16", "e8m0", "e4m3"]
Granularity = Literal["tensor", "channel"] | int | tuple[int, int]

_SCALE_BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "e8m0": 8, "e4m3": 8}


@dataclass(frozen=True, kw_only=True)
class Scheme(Config):
    """How a weight matrix (out, in) is quantised.

    Attributes:
        element: int2 to int8, fp8 (e4m3, largest 448) or fp4 (e2m1, largest 6).
        block: what shares a scale: "tensor"; "channel", an output row; n, runs of n along the input of a row; or
            (rows, cols), true 2-D tiles.
        zero: "none": symmetric about 0; "integer": an integer zero point, so that 0 is exact (the range is made to
            hold 0, as GPTQ and llm-compressor do); "float": the block's minimum as a float, so that 0 need not be.
        scale: the type scales are stored in; they are computed in fp32 and rounded to it. "e8m0" is a power of two
            (MXFP4), "e4m3" has a further fp32 scale for the whole tensor (NVFP4).
        narrow: symmetric integers only: codes -(2^(b-1) - 1) to 2^(b-1) - 1 and a step of absmax / (2^(b-1) - 1), as
            SmoothQuant; otherwise all 2^b codes and a step of 2 absmax / (2^b - 1), as GPTQ and llm-compressor, where
            a positive extremum is clipped by half a step.
        remainder: what to do with a size that the block does not divide: "error", or a smaller last "block".
    """

    element: Element = "int4"
    block: Granularity = 128
    zero: Zero = "none"
    scale: ScaleType = "bfloat16"
    narrow: bool = False
    remainder: Literal["error", "block"] = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        block = tuple(self.block) if isinstance(self.block, list) else self.block
        object.__setattr__(self, "block", block)
        sizes = block if isinstance(block, tuple) else (block,)
        whole = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes)
        if block not in ("tensor", "channel") and not (whole and (isinstance(block, int) or len(sizes) == 2)):
            raise StudfinderError(f"block {block!r}", expected="tensor, channel, a size above 0, or (rows, cols)")
        if not self.integer and self.zero != "none":
            raise StudfinderError(f"{self.element} with a zero point", expected="a symmetric scheme: zero='none'")
        if self.narrow and (not self.integer or self.zero != "none"):
            raise StudfinderError("narrow codes", expected="symmetric integers")
        if self.scale in ("e8m0", "e4m3") and self.zero == "float":
            raise StudfinderError(f"{self.scale} scales with a float minimum", expected="float32, bfloat16 or float16")

    @property
    def bits(self) -> int:
        """Bits of one element."""
        return int(self.element.removeprefix("int").removeprefix("fp"))

    @property
    def integer(self) -> bool:
        """Whether elements are integers."""
        return self.element.startswith("int")

    @property
    def codes(self) -> tuple[float, float]:
        """The smallest and the largest code. Unsigned for a float zero point, signed otherwise."""
        if not self.integer:
            top = 448.0 if self.element == "fp8" else 6.0
            return -top, top
        half = 2.0 ** (self.bits - 1)
        if self.zero == "float":
            return 0.0, 2 * half - 1
        return (1 - half if self.narrow else -half), half - 1

    def __str__(self) -> str:
        block = "x".join(map(str, self.block)) if isinstance(self.block, tuple) else self.block
        zero = {"none": "symmetric", "integer": "integer zero", "float": "float minimum"}[self.zero]
        return f"{self.element} {'group ' if isinstance(block, int) else 'per '}{block}, {zero}, {self.scale} scales"


SCHEMES: dict[str, Scheme] = {
    "w4-g128": Scheme(element="int4", block=128, zero="integer"),
    "w4-g64": Scheme(element="int4", block=64, zero="integer"),
    "w4-channel": Scheme(element="int4", block="channel", zero="integer"),
    "w3-g64": Scheme(element="int3", block=64, zero="integer"),
    "w8-channel": Scheme(element="int8", block="channel"),
    "w8-tensor": Scheme(element="int8", block="tensor", narrow=True),
    "fp8": Scheme(element="fp8", block="channel"),
    "fp8-block": Scheme(element="fp8", block=(128, 128), remainder="block"),
    "mxfp4": Scheme(element="fp4", block=32, scale="e8m0"),
    "nvfp4": Scheme(element="fp4", block=16, scale="e4m3"),
}
"""Schemes by name. MXFP4 is OCP's (Microscaling Formats v1.0, §5.2), NVFP4 NVIDIA's."""


def tile(shape: tuple[int, ...] | torch.Size, scheme: Scheme) -> tuple[int, int]:
    """Rows and columns of one block in a matrix of this shape (out, in).

    Raises:
        StudfinderError: not a matrix, or the block does not divide it and the scheme has no remainder block.
    """
    if len(shape) != 2:
        raise StudfinderError(f"a weight of shape {tuple(shape)}", expected="a matrix (out, in)")
    rows, cols = shape
    if scheme.block == "tensor":
        return rows, cols
    if scheme.block == "channel":
        return 1, cols
    size = scheme.block if isinstance(scheme.block, tuple) else (1, int(scheme.block))
    if scheme.remainder == "error" and (rows % size[0] or cols % size[1]):
        raise StudfinderError(
            f"blocks of {size[0]} x {size[1]} do not divide a matrix of {rows} x {cols}",
            expected="a divisor",
            do="Choose another block, or remainder='block' for a smaller last one",
        )
    return size


def bits_per_weight(shape: tuple[int, ...] | torch.Size, scheme: Scheme, kept: int = 0) -> float:
    """The true cost of one weight in a matrix of this shape: elements, scales, zero points, kept numbers.

    A zero point costs as many bits as an element (integer) or a scale (float); the further scale of "e4m3" 32 a
    tensor; a kept number 16 and the 32 of its place.
    """
    rows, cols = shape
    height, width = tile(shape, scheme)
    blocks = math.ceil(rows / height) * math.ceil(cols / width)
    scale = _SCALE_BITS[scheme.scale]
    zero = {"none": 0, "integer": scheme.bits, "float": scale}[scheme.zero]
    extra = 32 if scheme.scale == "e4m3" else 0
    return scheme.bits + (blocks * (scale + zero) + extra + kept * (16 + 32)) / (rows * cols)


def kernel(scheme: Scheme, *, acts: str | None = None) -> str | None:
    """What vLLM runs a weight in this scheme with, or None where it has nothing for it that we know.

    Read from vLLM's compressed-tensors schemes (`compressed_tensors_wNa16.py`, `_w8a8_int8.py`, `_w8a16_fp8.py`,
    `_w4a16_nvfp4.py`, `_w4a16_mxfp4.py`) and its kernels' own lists: Marlin takes groups of -1, 32, 64 and 128, and a
    zero point with 4 bits only; Machete (Hopper) -1, 64 and 128, and one with 8 bits too. State of 2026. Nothing here
    was run. Kernels for other hardware may support less.

    Args:
        acts: the element that inputs are rounded to, e.g. "int8"; None leaves them.
    """
    if scheme.zero == "float" or (scheme.remainder == "block" and isinstance(scheme.block, int)):
        return None
    if acts is not None:
        whole = scheme.block in ("channel", "tensor") and scheme.zero == "none"
        return f"CUTLASS W8A8 {acts}" if whole and scheme.element == acts and acts in ("int8", "fp8") else None
    if scheme.integer:
        if scheme.bits not in (4, 8) or scheme.scale not in ("bfloat16", "float16"):
            return None
        if scheme.bits == 8 and scheme.zero == "integer":
            return "Machete W8A16 (Hopper)" if scheme.block in ("channel", 64, 128) else None
        return f"Marlin W{scheme.bits}A16" if scheme.block in ("channel", 32, 64, 128) else None
    if scheme.element == "fp8" and scheme.block in ("tensor", "channel", (128, 128)) and scheme.scale != "e8m0":
        return "Marlin W8A16 fp8"
    name = next((name for name in ("nvfp4", "mxfp4") if SCHEMES[name] == scheme), None)
    return None if name is None else f"Marlin W4A16 {name}"

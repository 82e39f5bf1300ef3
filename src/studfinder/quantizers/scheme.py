"""What a scheme comes to on a matrix: the size of its blocks and its true bits.

The scheme itself, and the grammar of names of schemes and formats, are plain data: `records.scheme`.
"""

from __future__ import annotations

import math

import torch

from studfinder.errors import StudfinderError
from studfinder.records.scheme import SCHEMES as SCHEMES
from studfinder.records.scheme import Element as Element
from studfinder.records.scheme import Scheme as Scheme
from studfinder.records.scheme import format_named as format_named
from studfinder.records.scheme import scheme_named as scheme_named

_SCALE_BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "e8m0": 8, "e4m3": 8}


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
            do="Choose another block; a smaller last one is -rest behind the scheme's name, for dense checkpoints",
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

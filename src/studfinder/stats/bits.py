"""Magnitudes as integers: the bf16 bit pattern of |x| orders like |x| and is far cheaper to scan than floats."""

from __future__ import annotations

import torch

BINS = 1 << 15
"""Bit patterns of non-negative bf16 numbers."""
INF = 0x7F80
"""The pattern of infinity; NaNs lie above it."""


def magnitude_bits(values: torch.Tensor) -> torch.Tensor:
    """The bf16 bit pattern of |x| as int16, same shape. Wider dtypes are rounded to bf16, which keeps their order."""
    return values.detach().to(torch.bfloat16).view(torch.int16) & 0x7FFF


def from_bits(bits: int) -> float:
    """The magnitude that a pattern stands for."""
    return float(torch.tensor(bits, dtype=torch.int16).view(torch.bfloat16))


def to_bits(magnitude: float) -> int:
    """The pattern of a magnitude."""
    return int(magnitude_bits(torch.tensor(magnitude)))

"""Sums over tokens."""

from __future__ import annotations

import torch


class SumOfSquares:
    """Sum of squares over tokens, kept per entry of the remaining axes, in fp64."""

    def __init__(self) -> None:
        self.total: torch.Tensor | None = None

    def add(self, squares: torch.Tensor) -> None:
        """Add a tensor of sums of squares; every call has the same shape."""
        part = squares.detach().to("cpu", torch.float64)
        if self.total is None:
            self.total = part.clone()
        else:
            self.total += part

    def merge(self, other: SumOfSquares) -> None:
        """Take in another sum. Equal to one made of both streams up to rounding."""
        if other.total is not None:
            self.add(other.total)

    @property
    def root(self) -> torch.Tensor:
        """The square root: the norm over tokens."""
        if self.total is None:
            raise ValueError("nothing was added")
        return self.total.sqrt()

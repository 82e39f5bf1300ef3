"""A histogram of magnitudes over bf16 bit patterns: exact to merge, and fine enough for medians."""

from __future__ import annotations

import torch

from studfinder.stats.bits import BINS, INF, from_bits, magnitude_bits


class AbsHistogram:
    """Counts |x| by bf16 bit pattern (32,768 bins: 8 exponent bits, 7 mantissa bits).

    Quantiles are exact for bf16 numbers and within 0.4 % for wider ones, which are rounded to bf16. inf and NaN are
    counted apart in `nonfinite`.
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(BINS, dtype=torch.int64)

    def add(self, values: torch.Tensor) -> None:
        """Count every entry of a floating-point tensor of any shape."""
        self.add_bits(magnitude_bits(values))

    def add_bits(self, bits: torch.Tensor) -> None:
        """Count entries that are magnitude bits already."""
        self._counts += torch.bincount(bits.reshape(-1), minlength=BINS).cpu()

    def merge(self, other: AbsHistogram) -> None:
        """Take in another histogram. The result equals one made of both streams, exactly."""
        self._counts += other._counts

    @property
    def counts(self) -> torch.Tensor:
        """How many finite entries each pattern has, shape (0x7F80,)."""
        return self._counts[:INF]

    @property
    def n(self) -> int:
        """How many finite entries were counted."""
        return int(self.counts.sum())

    @property
    def nonfinite(self) -> int:
        """How many entries were inf or NaN."""
        return int(self._counts[INF:].sum())

    def quantile(self, q: float) -> float:
        """The smallest magnitude with at least a share q of the entries at or below it; 0 if nothing was counted."""
        total = self.n
        if total == 0:
            return 0.0
        rank = max(1, -int(-q * total // 1))  # ceil
        return from_bits(int(torch.searchsorted(self.counts.cumsum(0), rank)))

    @property
    def median(self) -> float:
        """The (lower) median magnitude."""
        return self.quantile(0.5)

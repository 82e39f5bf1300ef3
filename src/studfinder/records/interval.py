"""A number with its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with a confidence interval.

    Attributes:
        value: the point estimate.
        low, high: ends of the interval.
        level: its confidence level, e.g. 0.95.
        n: how many items (windows, documents; never tokens) were resampled.
        method: how the interval was made, e.g. "paired bootstrap over windows".
    """

    value: float
    low: float
    high: float
    level: float
    n: int
    method: str

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"

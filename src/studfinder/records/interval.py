"""A number with its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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

    @property
    def ordered(self) -> bool:
        """Whether it is an interval at all: low <= value <= high, none of them NaN."""
        return self.low <= self.value <= self.high

    def __str__(self) -> str:
        return f"{self:.3g}"

    def __format__(self, form: str) -> str:
        """The value and the ends, each in that form: f"{interval:+.1%}"."""
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]" if form else str(self)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What changed between two runs on the same items.

    Attributes:
        kind: "ratio" (after / before, of perplexities) or "difference" (after - before, of means).
        interval: of the change, paired within items.
        p: exact two-sided McNemar test where items are right or wrong; None elsewhere.
    """

    kind: Literal["ratio", "difference"]
    interval: Interval
    p: float | None = None

    @property
    def changed(self) -> bool:
        """Whether the interval leaves out no change."""
        none = 1.0 if self.kind == "ratio" else 0.0
        return not self.interval.low <= none <= self.interval.high

    def __format__(self, form: str) -> str:
        """As of an interval."""
        return format(self.interval, form)

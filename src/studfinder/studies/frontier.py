"""Two sets of quantised models over bits per weight: is the one never worse, and somewhere better, than the other?

At each rate a set is stood for by its best member that costs no more. The best is chosen on one half of the windows and
compared on the other half, so that the luck of the best of many is not counted as quality.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from studfinder.records import Interval
from studfinder.stats import ratio_interval
from studfinder.studies import FEWEST

FINEST = 3
"""Decimals to which rates are told apart: a few kept numbers cost millionths of a bit a weight, and no one chooses by
that."""


@dataclass(frozen=True)
class Member:
    """A quantised model: its name, true bits a weight, and by window its loss in nats and its tokens."""

    label: str
    bits: float
    nll: np.ndarray
    tokens: np.ndarray


@dataclass(frozen=True)
class Step:
    """A stretch of rates on which the same two members are the best of their sets.

    Attributes:
        low, high: the rates, in bits a weight.
        plain, kept: the best without and with something kept; None where none costs so little.
        ratio: perplexity of `kept` over that of `plain`, on windows that chose neither; None where one is missing.
    """

    low: float
    high: float
    plain: str | None
    kept: str | None
    ratio: Interval | None


def steps(plain: Sequence[Member], kept: Sequence[Member], low: float, high: float) -> list[Step]:
    """The two frontiers from one rate to another. The level of each interval is corrected for the number of different
    pairs that are compared (Bonferroni), so that all hold together with 95 %."""
    edges = sorted({low, high, *(_rate(m) for m in (*plain, *kept) if low < _rate(m) < high)})
    pairs = [(start, _best(plain, start), _best(kept, start)) for start in edges[:-1]]
    merged: list[tuple[float, Member | None, Member | None]] = []
    for start, one, other in pairs:
        if not merged or merged[-1][1:] != (one, other):
            merged.append((start, one, other))
    different = {(one.label, other.label) for _, one, other in merged if one and other}
    level = 1 - 0.05 / max(1, len(different))
    ends = [start for start, _, _ in merged[1:]] + [high]
    return [
        Step(
            start,
            end,
            one.label if one else None,
            other.label if other else None,
            _ratio(one, other, level) if one and other else None,
        )
        for (start, one, other), end in zip(merged, ends, strict=True)
    ]


def verdict(found: Sequence[Step]) -> str:
    """What the steps say, in a sentence without its subject."""
    compared = [step for step in found if step.ratio is not None]
    if not compared:
        return "there is no rate at which both can be compared"
    ratios = [step.ratio for step in compared if step.ratio is not None]
    if ratios[0].n < FEWEST:
        return f"{ratios[0].n} windows to compare on are too few to say"
    missing = [step for step in found if step.ratio is None and step.plain is not None]
    above = [step for step in compared if step.ratio is not None and step.ratio.value > 1]
    surely = [step for step in above if step.ratio is not None and step.ratio.low > 1]
    below = [ratio for ratio in ratios if ratio.high < 1]
    if missing:
        every = f"there is nothing kept that costs so little {_rates(missing)}"
    elif not above:
        every = "the best with keep lies on or below the best without at every rate"
    elif surely:
        every = f"the best with keep lies above the best without {_rates(surely)}, with an interval that excludes 1"
    else:
        every = f"the best with keep lies above the best without {_rates(above)}, though no interval excludes 1"
    if not below:
        return f"{every}; nowhere is it below with an interval that excludes 1"
    least = min(below, key=lambda ratio: ratio.value)
    return f"{every}; it is strictly below somewhere, at best x{least.value:.3g} [{least.low:.3g}, {least.high:.3g}]"


def _rate(member: Member) -> float:
    return round(member.bits, FINEST)


def _best(members: Sequence[Member], rate: float) -> Member | None:
    """The smallest loss on the windows that choose, among those that cost no more than the rate."""
    able = [member for member in members if _rate(member) <= rate and np.isfinite(member.nll).all()]
    return min(able, key=lambda member: float(member.nll[::2].sum()), default=None)


def _ratio(plain: Member, kept: Member, level: float) -> Interval | None:
    nll = (kept.nll - plain.nll)[1::2]
    if not len(nll):
        return None
    return ratio_interval(nll, plain.tokens[1::2], level=level, exponential=True)


def _rates(found: Sequence[Step]) -> str:
    return "at " + ", ".join(f"{step.low:.{FINEST}f} to {step.high:.{FINEST}f}" for step in found) + " bits"

"""How many of a kind there may be, from how many were seen."""

from __future__ import annotations

from studfinder.records import Interval


def most_unseen(seen: int, chance: float, level: float = 0.95) -> int:
    """With confidence `level` at most so many were missed by a sample that each had at least a given chance to be in.

    The largest N such that of seen + N, each seen with this chance by itself, so few would be seen with probability
    1 - level or more (Clopper and Pearson's way round). It holds for a sample by strata of whatever sizes, if `chance`
    is the smallest of any stratum: those in the others are only seen more often.

    Args:
        seen: how many the sample holds.
        chance: above 0, at most 1.
    """
    from scipy.stats import binom  # slow to load

    if chance >= 1:
        return 0
    low, high = 0, 1
    while binom.cdf(seen, seen + high, chance) > 1 - level:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if binom.cdf(seen, seen + middle, chance) > 1 - level else (low, middle)
    return low


def share_interval(hits: int, of: int, *, level: float = 0.95, what: str) -> Interval:
    """A share with its exact two-sided interval (Clopper and Pearson); `of` at least 1.

    Args:
        what: the name of what was counted, for the record.
    """
    from scipy.stats import binomtest  # slow to load

    ends = binomtest(hits, of).proportion_ci(level, method="exact")
    found = (float(ends.low), float(ends.high))
    return Interval(value=hits / of, low=found[0], high=found[1], level=level, n=of, method=f"exact, over {what}")

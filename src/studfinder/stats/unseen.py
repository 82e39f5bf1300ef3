"""How many of a kind a random sample may have missed."""

from __future__ import annotations


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

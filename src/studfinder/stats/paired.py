"""Intervals for paired comparisons: windows are resampled, never tokens."""

from __future__ import annotations

import numpy as np

from studfinder.records import Interval

_DRAWS = 10_000


def ratio_interval(
    sums: np.ndarray, weights: np.ndarray, *, level: float = 0.95, exponential: bool = False, what: str = "windows"
) -> Interval:
    """Bootstrap interval of sum(sums) / sum(weights) over items (10,000 draws, fixed seed, percentile method).

    For paired comparisons `sums` are differences within each item, so that what the two runs share cancels.

    Args:
        sums: (n,) one total an item, e.g. KL summed over a window's tokens.
        weights: (n,) e.g. the window's tokens.
        level: confidence level.
        exponential: report exp of the ratio, as a perplexity ratio needs.
        what: the items' name, for the record.
    """
    n = len(sums)
    draws = np.random.default_rng(0).integers(0, n, size=(_DRAWS, n))
    ratios = sums[draws].sum(axis=1) / weights[draws].sum(axis=1)
    value = float(sums.sum() / weights.sum())
    low, high = (float(x) for x in np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2]))
    if exponential:
        with np.errstate(over="ignore"):
            value, low, high = (float(np.exp(x)) for x in (value, low, high))
    return Interval(value=value, low=low, high=high, level=level, n=n, method=f"paired bootstrap over {what}")

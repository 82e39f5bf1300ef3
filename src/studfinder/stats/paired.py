"""Intervals and tests for paired comparisons: windows, documents or items are resampled, never tokens."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np

from studfinder.records import Interval

_DRAWS = 10_000
_CHUNK = 1 << 22
"""Indices drawn at a time, so that thousands of items do not take gigabytes."""


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
    random = np.random.default_rng(0)
    rows = max(1, _CHUNK // n)
    ratios = np.empty(_DRAWS)
    for start in range(0, _DRAWS, rows):
        draws = random.integers(0, n, size=(min(rows, _DRAWS - start), n))
        ratios[start : start + len(draws)] = sums[draws].sum(axis=1) / weights[draws].sum(axis=1)
    value = float(sums.sum() / weights.sum())
    low, high = (float(x) for x in np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2]))
    if exponential:
        with np.errstate(over="ignore"):
            with np.errstate(over="ignore"):  # infinite where a float has no room for it
                value, low, high = (float(np.exp(x)) for x in (value, low, high))
    return Interval(value=value, low=low, high=high, level=level, n=n, method=f"paired bootstrap over {what}")


def mean_interval(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence[int | float | str] | None = None,
    *,
    level: float = 0.95,
    what: str = "items",
) -> Interval:
    """Bootstrap interval of a mean over items.

    Args:
        values: (n,) one score an item; differences within items for a paired comparison.
        clusters: (n,) items of one cluster (a document, an entity, a seed) are resampled together.
        level: confidence level.
        what: the name of what is resampled, for the record.
    """
    array = np.asarray(values, dtype=float)
    if clusters is None:
        return ratio_interval(array, np.ones(len(array)), level=level, what=what)
    _, which = np.unique(np.asarray(clusters), return_inverse=True)
    return ratio_interval(np.bincount(which, weights=array), np.bincount(which).astype(float), level=level, what=what)


def mcnemar(before: Sequence[float], after: Sequence[float]) -> float:
    """Exact two-sided McNemar test: the chance of a split at least so uneven among the items whose right/wrong
    changed, if either direction were as likely.

    Args:
        before, after: (n,) 1 for right and 0 for wrong, of the same items.
    """
    lost = sum(b > a for b, a in zip(before, after, strict=True))
    won = sum(a > b for b, a in zip(before, after, strict=True))
    n, less = lost + won, min(lost, won)
    if n == 0:
        return 1.0
    tail = sum(comb(n, k) for k in range(less + 1))
    return min(1.0, float(2 * tail / 2**n)) if n < 1000 else min(1.0, 2 * float(np.exp(_log_tail(n, less))))


def _log_tail(n: int, k: int) -> float:
    steps = np.arange(1, n + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(steps))])
    terms = logs[n] - logs[: k + 1] - logs[n - np.arange(k + 1)] - n * np.log(2)
    return float(np.logaddexp.reduce(terms))

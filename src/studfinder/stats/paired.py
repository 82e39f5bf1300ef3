"""Intervals and tests for paired comparisons: windows, documents or items are resampled, never tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from studfinder.records import Interval
from studfinder.stats.resampling import bootstrap, total


def ratio_interval(
    sums: np.ndarray, weights: np.ndarray, *, level: float = 0.95, exponential: bool = False, what: str = "windows"
) -> Interval:
    """Bootstrap interval of sum(sums) / sum(weights) over items.

    For paired comparisons `sums` are differences within each item, so that what the two runs share cancels.

    Args:
        sums: (n,) one total an item, e.g. KL summed over a window's tokens.
        weights: (n,) e.g. the window's tokens.
        level: confidence level.
        exponential: report exp of the ratio, as a perplexity ratio needs.
        what: the items' name, for the record.
    """
    ends = bootstrap(lambda times_RI: total(times_RI, sums) / total(times_RI, weights), [len(sums)], level=level)
    if exponential:
        with np.errstate(over="ignore"):  # infinite where a float has no room for it
            ends = np.exp(ends)
    return _interval(ends, len(sums), f"paired bootstrap over {what}", level)


def student_interval(
    sums: np.ndarray, weights: np.ndarray, *, level: float = 0.95, exponential: bool = False, what: str = "windows"
) -> Interval:
    """The same of few items: Student's t, with the spread of a ratio from its residuals (the delta method). Of one item
    the ends are infinite. Takes what `ratio_interval` takes."""
    from scipy.special import stdtrit

    n, size = len(sums), weights.sum()
    with np.errstate(invalid="ignore", over="ignore"):
        ratio = sums.sum() / size
        spread = np.sqrt(n / (n - 1) * np.square(sums - ratio * weights).sum()) if n > 1 else np.inf
        reach = (stdtrit(n - 1, (1 + level) / 2) if n > 1 else 1.0) * spread / size
        ends = np.array([ratio, ratio - reach, ratio + reach])
        ends = np.exp(ends) if exponential else ends
    return _interval(ends, n, f"Student's t over {what}", level)


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
    sums_1G, sizes_G = _pooled(np.asarray(values, dtype=float)[None], clusters)
    return ratio_interval(sums_1G[0], sizes_G, level=level, what=what)


def averaged(numerators: Sequence[np.ndarray], denominators: Sequence[np.ndarray] | None = None) -> Interval:
    """Bootstrap interval (95 %) of the mean over tasks of the mean over their items, or of the ratio of two such means.

    Args:
        numerators: by task, (n,) one number an item; every task's items are resampled by themselves.
        denominators: the same of what it is a share of, resampled together with them.
    """

    def share(*times: np.ndarray) -> np.ndarray:
        above, below = (
            np.sum([total(drawn, task) / len(task) for drawn, task in zip(times, tasks, strict=True)], axis=0)
            for tasks in (numerators, denominators or [np.ones(len(task)) for task in numerators])
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(above / below)

    sizes = [len(task) for task in numerators]
    return _interval(bootstrap(share, sizes), sum(sizes), "paired bootstrap over items, by task")


def crossed(
    statistic: Callable[[Mapping[str, np.ndarray]], np.ndarray],
    scores: Mapping[str, np.ndarray],
    clusters: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    *,
    level: float = 0.95,
    what: str = "items",
) -> Interval:
    """Bootstrap interval of a statistic of means where items and the draws of a control are both random.

    Items, or clusters of them, are resampled together for all scores, so that what the runs share cancels; where a
    score has several draws (seeds of a random control), they are resampled too, alike for scores with as many. Few
    draws show little of how much draws vary: with two or three the interval is rather too short.

    Args:
        statistic: from means by name, each of shape (R,), to (R,).
        scores: by name (draws, items); one row where nothing was drawn.
        clusters: (items,) labels of what is resampled together; or such labels by the scores' names, where these are of
            several sets of items: those with the same labels share their items, and each set is drawn by itself.
        what: the name of what is resampled, for the record.
    """
    labels = {name: clusters[name] if isinstance(clusters, Mapping) else clusters for name in scores}
    sets = list({None if own is None else tuple(own): own for own in labels.values()})
    which = {name: sets.index(None if own is None else tuple(own)) for name, own in labels.items()}
    pooled = {name: _pooled(rows_SI, labels[name]) for name, rows_SI in scores.items()}
    sizes = [len(next(pooled[name][1] for name, own in which.items() if own == place)) for place in range(len(sets))]
    seeds = sorted({len(rows_SI) for rows_SI in scores.values()})

    def of_means(*times: np.ndarray) -> np.ndarray:
        drawn = dict(zip(seeds, times[len(sizes) :], strict=True))
        means = {}
        for name, (sums_SG, sizes_G) in pooled.items():
            times_RG = times[which[name]]
            means_RS = total(times_RG, sums_SG.T) / (times_RG @ sizes_G)[:, None]
            means[name] = (means_RS * drawn[len(sums_SG)]).sum(axis=1) / len(sums_SG)
        return statistic(means)

    method = f"paired bootstrap over {what}" + (f" and {max(seeds)} draws" if max(seeds) > 1 else "")
    return _interval(bootstrap(of_means, [*sizes, *seeds], level=level), sum(sizes), method, level)


def _pooled(values_SI: np.ndarray, clusters: Sequence[int | float | str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Sums of each row over clusters, (S, G), and the clusters' sizes, (G,)."""
    if clusters is None:
        return values_SI, np.ones(values_SI.shape[1])
    _, which = np.unique(np.asarray(clusters), return_inverse=True)
    return np.stack([np.bincount(which, weights=row) for row in values_SI]), np.bincount(which).astype(float)


def _interval(ends: np.ndarray, n: int, method: str, level: float = 0.95) -> Interval:
    value, low, high = ends.tolist()
    return Interval(value=value, low=low, high=high, level=level, n=n, method=method)


def mcnemar(before: Sequence[float], after: Sequence[float]) -> float:
    """Exact two-sided McNemar test: the chance of a split at least so uneven among the items whose right/wrong
    changed, if either direction were as likely.

    Args:
        before, after: (n,) 1 for right and 0 for wrong, of the same items.
    """
    from scipy.stats import binomtest  # slow to load

    lost = sum(b > a for b, a in zip(before, after, strict=True))
    won = sum(a > b for b, a in zip(before, after, strict=True))
    return float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0

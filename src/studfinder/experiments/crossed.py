"""Intervals where items and the draws of a control are both random: both are resampled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from studfinder.records import Interval

_DRAWS = 4000


def crossed(
    statistic: Callable[[Mapping[str, np.ndarray]], np.ndarray],
    scores: Mapping[str, np.ndarray],
    clusters: Sequence[str] | None = None,
    *,
    level: float = 0.95,
    what: str = "items",
) -> Interval:
    """Bootstrap interval (4,000 draws, fixed seed, percentiles) of a statistic of means.

    Items, or clusters of them, are resampled together for all scores, so that what the runs share cancels; where a
    score has several draws (seeds of a random control), they are resampled too, alike for scores with as many. Few
    draws show little of how much draws vary: with two or three the interval is rather too short.

    Args:
        statistic: from means by name, each of shape (R,), to (R,).
        scores: by name (draws, items); one row where nothing was drawn.
        clusters: (items,) labels of what is resampled together.
        what: the name of what is resampled, for the record.
    """
    items = next(iter(scores.values())).shape[1]
    _, which = np.unique(np.arange(items) if clusters is None else np.asarray(clusters), return_inverse=True)
    groups = int(which.max()) + 1
    generator = np.random.default_rng(0)
    times_RG = np.vstack([np.ones(groups), generator.multinomial(groups, np.full(groups, 1 / groups), _DRAWS)])
    sizes_G = np.bincount(which, minlength=groups)
    draws = sorted({rows.shape[0] for rows in scores.values()})
    picks = {n: np.vstack([np.full(n, 1 / n), generator.multinomial(n, np.full(n, 1 / n), _DRAWS) / n]) for n in draws}
    means = {}
    for name, rows_SI in scores.items():
        sums_GS = np.stack([np.bincount(which, weights=row, minlength=groups) for row in rows_SI], axis=1)
        means_RS = times_RG @ sums_GS / (times_RG @ sizes_G)[:, None]
        means[name] = (means_RS * picks[rows_SI.shape[0]]).sum(axis=1)
    values_R = statistic(means)
    low, high = np.quantile(values_R[1:], [(1 - level) / 2, (1 + level) / 2])
    seeds = f" and {max(draws)} draws" if max(draws) > 1 else ""
    return Interval(
        value=float(values_R[0]),
        low=float(low),
        high=float(high),
        level=level,
        n=groups,
        method=f"paired bootstrap over {what}{seeds}",
    )

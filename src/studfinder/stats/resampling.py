"""The one bootstrap: what was measured is drawn again with replacement, as counts of how often each item came."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np

DRAWS = 10_000
_CHUNK = 1 << 17
"""Numbers held at a time: 1 MB, which stays in a cache."""
_FEW = 256
"""Items whose draws are kept for the next time: 20 MB at most."""


def bootstrap(
    statistic: Callable[..., np.ndarray], sizes: Sequence[int], *, level: float = 0.95, width: int = 1
) -> np.ndarray:
    """The value of a statistic and the ends of its interval (10,000 draws, fixed seeds, percentile method).

    Args:
        statistic: takes, for each of `sizes`, how often each item was drawn, of shape (R, size), and returns what comes
            of it, of shape (R, ...). See `total`.
        sizes: how many items there are, for each set that is drawn by itself: the items; the items of each task; the
            items and the draws of a control.
        width: numbers that the statistic works on for each draw, if more than there are items.

    Returns:
        Value, low and high, of shape (3, ...).
    """
    value = statistic(*(np.ones((1, size)) for size in sizes))
    rows = max(1, _CHUNK // max(width, *sizes))
    # The draws are the same for everything that is asked of as many items.
    one = len(sizes) == 1 and sizes[0] <= _FEW
    parts: Iterable[tuple[np.ndarray, ...]] = _kept(sizes[0], rows) if one else _draws(sizes, rows)
    drawn = np.concatenate([statistic(*part) for part in parts])
    with np.errstate(invalid="ignore"):  # between two that are infinite
        ends = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    # Of items that are all alike, sums over other counts differ by their rounding.
    return np.concatenate([value, np.where(np.isclose(ends, value, rtol=1e-12, atol=0), value, ends)])


def _draws(sizes: Sequence[int], rows: int) -> Iterator[tuple[np.ndarray, ...]]:
    generators = [np.random.default_rng(place) for place in range(len(sizes))]
    for start in range(0, DRAWS, rows):
        yield tuple(_counts(*pair, min(rows, DRAWS - start)) for pair in zip(generators, sizes, strict=True))


@lru_cache(maxsize=8)
def _kept(size: int, rows: int) -> list[tuple[np.ndarray, ...]]:
    return list(_draws([size], rows))


def _counts(generator: np.random.Generator, size: int, rows: int) -> np.ndarray:
    picks_RI = generator.integers(0, size, (rows, size)) + np.arange(0, rows * size, size)[:, None]
    return np.bincount(picks_RI.ravel(), minlength=rows * size).reshape(rows, size).astype(float)


def total(counts_RI: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The sum over what was drawn, shape (R,) of values (I,), or (R, K) of values (I, K). What is not finite is in it
    where it was drawn, and nowhere else."""
    broken = ~np.isfinite(values)
    sums = counts_RI @ np.where(broken, 0.0, values)
    for item in np.unique(broken.nonzero()[0]):
        sums[counts_RI[:, item] > 0] += np.where(broken[item], values[item], 0.0)
    return sums

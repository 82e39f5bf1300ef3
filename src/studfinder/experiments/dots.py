"""Points with their intervals: a row a thing, a colour a series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from studfinder.records import Interval
from studfinder.report.style import CATEGORIES, MARKERS, MUTED, log_ticks

Point = Sequence[float]
"""Value, low, high."""


def point(interval: Interval) -> list[float]:
    """An interval as a figure needs it."""
    return [interval.value, interval.low, interval.high]


def dots(
    axes: Axes,
    labels: Sequence[str],
    series: Mapping[str, Sequence[Point]],
    *,
    none: float | None = None,
    log: bool = False,
    colours: Sequence[str] = CATEGORIES,
) -> None:
    """Draw points with intervals; infinite ones end at the axis.

    Args:
        labels: of the rows, the first on top.
        series: by name one point a row.
        none: where no change lies; a line is drawn there.
        log: whether the axis of values is logarithmic.
        colours: of the series.
    """
    finite = [np.isfinite(np.array(points, dtype=float).reshape(-1, 3)[:, 0]) for points in series.values()]
    step = 0.62 / len(series) if np.sum(finite, axis=0).max() > 1 else 0.0  # side by side only where they would meet
    for place, (name, points) in enumerate(series.items()):
        shift = (place - (len(series) - 1) / 2) * step
        value, low, high = np.array(points, dtype=float).reshape(-1, 3).T
        y = np.arange(len(labels)) + shift
        colour, marker = colours[place % len(colours)], MARKERS[place % len(MARKERS)]
        good = np.isfinite(value)
        ends = np.nan_to_num(high, posinf=np.nanmax(value[good], initial=0.0))
        axes.hlines(y[good], low[good], ends[good], color=colour, linewidth=2)
        axes.plot(value[good], y[good], marker, color=colour, markersize=6, mew=0, label=name, linestyle="none")
    if none is not None:
        axes.axvline(none, color=MUTED, linewidth=1)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="x")
    if log:
        axes.set_xscale("log")
        log_ticks(axes.xaxis)

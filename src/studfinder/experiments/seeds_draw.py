"""Curves over training steps of models trained at several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studfinder.experiments.seeds import Curve, over_seeds
from studfinder.records import Interval
from studfinder.report.style import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILLION, log_ticks, new_figure

COLOURS = (VERMILLION, BLUE, GREY, GREEN, PURPLE, ORANGE)
BEYOND = 0.15
"""How far a panel reaches beyond the seeds' values, as a share of their range."""
FEW = 5
"""Kinds in a panel whose seeds' own curves can be told apart."""
BANDS = 3
"""Kinds in a panel whose bands can be; of more the intervals are shown at the last step only."""


def curves(
    figure: Figure,
    place: Any,
    cells: dict[str, list[Curve]],
    label: str,
    *,
    log: bool = False,
    low: float | None = None,
) -> Any:
    """Means over seeds as lines with their intervals as bands (of more than three kinds as bars at the end), and,
    where there are few kinds, each seed's own curve thin behind it. An interval that reaches far beyond every seed's
    values, as three seeds make them, is cut."""
    axes = figure.add_subplot(place)
    for number, (name, seeds) in enumerate(cells.items()):
        turn, colour = divmod(number, len(COLOURS))
        style: Any = {"color": COLOURS[colour], "linestyle": ("-", "--", ":")[turn]}
        steps, values_SN = on_one_grid(seeds)
        for values_N in values_SN if len(cells) <= FEW else ():
            axes.plot(steps, values_N, linewidth=0.8, alpha=0.5, **style)
        if len(cells) <= BANDS or len(steps) < 2:
            mean_and_interval(axes, steps, values_SN, name, **style)
        else:
            beside = steps[-1] + 0.012 * (number + 1) * (steps[-1] - steps[0])  # so that bars do not cover each other
            _mean_and_end(axes, steps, values_SN, name, beside, **style)
    axes.set_xlabel("steps")
    axes.set_title(label, loc="left")  # beside the axis a long one would run into the panel above
    axes.grid(axis="y")
    seen = [value for seeds in cells.values() for curve in seeds for _, value in curve if np.isfinite(value)]
    above = [value for value in seen if value > 0]
    if log and above and max(above) > 3 * min(above):  # within a factor of three a log axis has no round number to show
        axes.set_yscale("log")
        log_ticks(axes.yaxis)
        _cut(axes, min(above) * (min(above) / max(above)) ** BEYOND, max(above) * (max(above) / min(above)) ** BEYOND)
    elif seen and max(seen) > min(seen):
        beyond = BEYOND * (max(seen) - min(seen))
        _cut(axes, min(seen) - beyond, max(seen) + beyond)
    if low is not None:
        axes.set_ylim(bottom=low)
    return axes


def _cut(axes: Axes, low: float, high: float) -> None:
    """Show no more than this."""
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, low), min(top, high))


def on_one_grid(seeds: list[Curve]) -> tuple[list[int], np.ndarray]:
    """Curves on all the steps that any of them has, (S, N): NaN where one has no value or no finite one."""
    steps = sorted({step for curve in seeds for step, _ in curve})
    values_SN = np.full((len(seeds), len(steps)), np.nan)
    for values_N, curve in zip(values_SN, seeds, strict=True):
        for step, value in curve:
            values_N[steps.index(step)] = value
    return steps, np.where(np.isfinite(values_SN), values_SN, np.nan)


def mean_and_interval(axes: Axes, places: Sequence[float], values_SN: np.ndarray, label: str, **style: Any) -> None:
    """A line through the means over seeds, and a band from the lower to the upper ends of their intervals
    (`over_seeds`), where there are two seeds or more. Values are (S, N); NaN where a seed has none."""
    there, found = _means(places, values_SN)
    axes.plot(there, [mean.value for mean in found], linewidth=2, label=label, **style)
    low, high = [mean.low for mean in found], [mean.high for mean in found]
    if found:
        axes.fill_between(there, low, high, color=style["color"], alpha=0.14, linewidth=0)


def _mean_and_end(
    axes: Axes, places: Sequence[float], values_SN: np.ndarray, label: str, beside: float, **style: Any
) -> None:
    """A line through the means over seeds, and the interval of the last of them as a bar beside it."""
    there, found = _means(places, values_SN)
    axes.plot(there, [mean.value for mean in found], linewidth=2, label=label, **style)
    if found:
        axes.plot([beside] * 2, [found[-1].low, found[-1].high], linewidth=2, alpha=0.6, **style)
        axes.plot([beside], [found[-1].value], ".", markersize=8, color=style["color"])


def _means(places: Sequence[float], values_SN: np.ndarray) -> tuple[list[float], list[Interval]]:
    found = [over_seeds(value_S[np.isfinite(value_S)]) for value_S in values_SN.T if np.isfinite(value_S).any()]
    there = [place for place, value_S in zip(places, values_SN.T, strict=True) if np.isfinite(value_S).any()]
    return there, found


def one_panel(width: float, cells: dict[str, list[Curve]], label: str, **options: Any) -> Figure:
    """A figure of one panel of curves with its legend on top."""
    figure = new_figure(width, 330)
    curves(figure, 111, cells, label, **options)
    figure.legend(loc="outside upper left", ncols=3 if width > 600 else 1)
    return figure

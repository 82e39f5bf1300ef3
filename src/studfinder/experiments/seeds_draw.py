"""Curves over training steps of models trained at several seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from studfinder.experiments.seeds import Curve
from studfinder.report.style import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILLION, log_ticks, new_figure

COLOURS = (VERMILLION, BLUE, GREY, GREEN, PURPLE, ORANGE)


def curves(
    figure: Figure,
    place: Any,
    cells: dict[str, list[Curve]],
    label: str,
    *,
    log: bool = False,
    low: float | None = None,
) -> Any:
    """Means over seeds as lines, with each seed's own curve thin behind it."""
    axes = figure.add_subplot(place)
    for number, (name, seeds) in enumerate(cells.items()):
        turn, colour = divmod(number, len(COLOURS))
        style: Any = {"color": COLOURS[colour], "linestyle": ("-", "--", ":")[turn]}
        steps, values_SN = on_one_grid(seeds)
        for values_N in values_SN:
            axes.plot(steps, values_N, linewidth=0.8, alpha=0.45, **style)
        axes.plot(steps, _mean(values_SN), linewidth=2, label=name, **style)
    axes.set_xlabel("steps")
    axes.set_title(label, loc="left")  # beside the axis a long one would run into the panel above
    axes.grid(axis="y")
    seen = [value for seeds in cells.values() for curve in seeds for _, value in curve if value > 0]
    if log and seen and max(seen) > 3 * min(seen):  # within a factor of three a log axis has no round number to show
        axes.set_yscale("log")
        log_ticks(axes.yaxis)
    if low is not None:
        axes.set_ylim(bottom=low)
    return axes


def on_one_grid(seeds: list[Curve]) -> tuple[list[int], np.ndarray]:
    """Curves on all the steps that any of them has, (S, N): NaN where one has no value or no finite one."""
    steps = sorted({step for curve in seeds for step, _ in curve})
    values_SN = np.full((len(seeds), len(steps)), np.nan)
    for values_N, curve in zip(values_SN, seeds, strict=True):
        for step, value in curve:
            values_N[steps.index(step)] = value
    return steps, np.where(np.isfinite(values_SN), values_SN, np.nan)


def _mean(values_SN: np.ndarray) -> np.ndarray:
    """Over the seeds that have a value; NaN where none has."""
    count_N = np.isfinite(values_SN).sum(axis=0)
    return np.where(count_N > 0, np.nansum(values_SN, axis=0) / np.maximum(count_N, 1), np.nan)


def one_panel(width: float, cells: dict[str, list[Curve]], label: str, **options: Any) -> Figure:
    """A figure of one panel of curves with its legend on top."""
    figure = new_figure(width, 330)
    curves(figure, 111, cells, label, **options)
    figure.legend(loc="outside upper left", ncols=3 if width > 600 else 1)
    return figure

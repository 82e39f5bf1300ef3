"""Figures of outlier-free/finetune."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studfinder.experiments.dots import dots, point
from studfinder.experiments.finetune_tables import UNTRAINED, gap, states, window_mean
from studfinder.experiments.seeds_draw import COLOURS
from studfinder.experiments.w8a8 import WAYS
from studfinder.records import Result
from studfinder.report.style import BLUE, GREY, MUTED, VERMILLION, log_ticks, new_figure


def draw(result: Result, width: float) -> dict[str, Figure]:
    """Over steps: the largest activation and the need; before and after: the need, and what eight bits cost."""
    figures = {}
    for number, seen in enumerate(result.data["models"].values(), 1):
        end = "" if number == 1 else f"-{number}"
        figures[f"steps{end}"] = _steps(seen, width)
        if seen["weights"]:
            figures[f"need{end}"] = _need(seen, width)
        figures[f"eight-bits{end}"] = _eight_bits(seen, width)
    return figures


def _steps(seen: dict[str, Any], width: float) -> Figure:
    panels = {"top activation": "largest activation"}
    if seen["weights"]:
        panels["need"] = "KL without the super weight, nats a token"
    wide = width > 600
    figure = new_figure(width, 380 if wide else 360 * len(panels) + 60)
    grid = figure.add_gridspec(*((1, len(panels)) if wide else (len(panels), 1)))
    for number, (curve, label) in enumerate(panels.items()):
        axes = figure.add_subplot(grid[(0, number) if wide else (number, 0)])
        _lines(axes, seen, curve)
        axes.set_xlabel("steps")
        axes.set_ylabel(label)
        axes.grid(axis="y")
        if curve == "top activation":
            axes.set_yscale("log")
            log_ticks(axes.yaxis)
        else:
            axes.set_ylim(bottom=0)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=3 if wide else 1)
    return figure


def _lines(axes: Axes, seen: dict[str, Any], curve: str) -> None:
    """One line an arm, all from where the untrained model is; thinner and thinner, since many lie on each other."""
    before = seen["untrained"]
    widths = [6.0, 4.8, 3.7, 2.7, 1.8, 1.0]
    for colour, thick, (name, arm) in zip(COLOURS, widths, seen["arms"].items(), strict=False):
        if "skipped" in arm or not arm["curves"][curve]:
            continue
        if curve == "need":
            start = window_mean(before["super"]["kl"][: seen["watched"]]).value
        else:
            start = before["outliers"]["top_activation"]
        points = [(0, start), *arm["curves"][curve]]
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=thick, label=name)


def _need(seen: dict[str, Any], width: float) -> Figure:
    found = states(seen)
    series = {
        "the super weight": [point(window_mean(state["super"]["kl"])) for state in found.values()],
        "a control weight": [point(window_mean(state["control"]["kl"])) for state in found.values()],
    }
    return _rows(found, series, width, "KL without it, nats a token", (VERMILLION, GREY))


def _eight_bits(seen: dict[str, Any], width: float) -> Figure:
    found = states(seen)
    series = {way: [point(window_mean(gap(state, way))) for state in found.values()] for way in WAYS}
    colours = (GREY, VERMILLION, BLUE, COLOURS[3])
    return _rows(found, series, width, "loss that eight bits add, nats a token", colours)


def _rows(
    found: dict[str, Any], series: dict[str, list[list[float]]], width: float, label: str, colours: tuple[str, ...]
) -> Figure:
    figure = new_figure(width, 90 + 46 * len(found))
    axes = figure.add_subplot()
    dots(axes, list(found), series, none=0.0, colours=colours)
    axes.axhline(list(found).index(UNTRAINED) + 0.5, color=MUTED, linewidth=0.6)
    axes.set_xlabel(label)
    figure.legend(loc="outside upper left", ncols=4 if width > 600 else 1)
    return figure

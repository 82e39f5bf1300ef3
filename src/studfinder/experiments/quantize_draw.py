"""One figure that several of the quantisers' experiments share: recipes in rows, a colour for what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from studfinder.experiments.dots import dots, point
from studfinder.experiments.quantize_recipes import Made
from studfinder.experiments.quantize_tables import change
from studfinder.records import Result
from studfinder.report.style import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILLION, log_ticks, new_figure

_COLOURS = (GREY, VERMILLION, ORANGE, BLUE, GREEN, PURPLE)


def ratios_data(made: Sequence[Made], measure: str) -> dict[str, Any]:
    """For the figure: perplexity over the original's, by family (rows) and by what is kept (colours)."""
    original, tried = made[0], [one for one in made[1:] if not one.refused]
    families = list(dict.fromkeys(one.recipe.family for one in tried))
    series: dict[str, list[list[float]]] = {}
    for kept in dict.fromkeys(one.recipe.kept for one in tried):
        by_family = {one.recipe.family: one for one in tried if one.recipe.kept == kept}
        series[kept or "nothing"] = [_point(by_family.get(family), original, measure) for family in families]
    return {"rows": families, "series": series, "measure": measure}


def _point(one: Made | None, original: Made, measure: str) -> list[float]:
    comparison = None if one is None else change(one, original, measure)
    return [float("nan")] * 3 if comparison is None else point(comparison.interval)


def draw_ratios(result: Result, width: float, stem: str) -> dict[str, Figure]:
    """Perplexity over the original's, a figure a model."""
    figures = {}
    for place, (name, seen) in enumerate(result.data["models"].items()):
        wide = width > 600
        tall = (26 if wide else 48) * len(seen["rows"]) * max(1.0, 0.55 * len(seen["series"]))
        figure = new_figure(width, 110 + (0 if wide else 14 * len(seen["series"])) + max(tall, 120))
        axes = figure.subplots()
        rows = seen["rows"] if wide else [fill(row, 18) for row in seen["rows"]]
        finite = [p[0] for points in seen["series"].values() for p in points if 0 < p[0] < float("inf")]
        log = bool(finite) and max([*finite, 1.0]) / min([*finite, 1.0]) > 3
        dots(axes, rows, seen["series"], none=1.0, log=log, colours=_COLOURS)
        axes.set_xlabel(f"{seen['measure'].replace(':', ' ')} / original ({name})" if wide else f"/ original ({name})")
        if log:
            log_ticks(axes.xaxis, most=6)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(7 if wide else 3))
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=2 if wide else 1)
        figures[stem + (f"-{place + 1}" if place else "")] = figure
    return figures

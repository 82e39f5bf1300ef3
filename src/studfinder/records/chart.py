"""Figures as plain data: what is drawn, so that any run can be drawn again, wide and narrow, by one drawer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from studfinder.records.interval import Comparison, Interval

Point = tuple[float, float, float]
"""Value, low, high."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """What has one colour.

    Attributes:
        name: in the legend.
        points: value, low and high; NaN where there is none.
        x: where they stand, of lines; rows have none.
        dotted: whether the line is dotted.
        quiet: whether it is drawn in grey: a control.
        like: the name of the one whose colour it has; "" for a colour of its own.
        thin: one of several lines that another of this name is the mean of.
    """

    name: str
    points: tuple[Point, ...]
    x: tuple[float, ...] = ()
    dotted: bool = False
    quiet: bool = False
    like: str = ""
    thin: bool = False


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One pair of axes.

    Attributes:
        kind: "dots", points with intervals in rows; "bars", the same from a common start; "lines", points over x.
        rows: labels of the rows, the first on top.
        title, x, y: in words, with units.
        shaded: of lines, from which x to which something holds.
        none: the value at which nothing changed; a line is drawn there.
        log: whether the values' axis is logarithmic; `log_x` that of x.
        percent: whether values are shares.
        low: where the values' axis begins, of lines; None is where values do.
    """

    kind: Literal["dots", "bars", "lines"]
    series: tuple[Series, ...]
    rows: tuple[str, ...] = ()
    title: str = ""
    x: str = ""
    y: str = ""
    shaded: tuple[float, float] | None = None
    none: float | None = None
    log: bool = False
    log_x: bool = False
    percent: bool = False
    low: float | None = None


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure.

    Attributes:
        name: of its file.
        plots: side by side where there is room, else one below the other.
        model: which model it shows; "" if all.
    """

    name: str
    plots: tuple[Plot, ...]
    model: str = ""


def point(of: Interval | Comparison | float | None) -> Point:
    """A number as a chart needs it."""
    if isinstance(of, Comparison):
        of = of.interval
    if isinstance(of, Interval):
        return (of.value, of.low, of.high)
    value = float("nan") if of is None else float(of)
    return (value, value, value)


def line(name: str, x: Iterable[float], values: Iterable[Interval | Comparison | float | None], **more: Any) -> Series:
    """What has one colour, over x; `more` as in `Series`."""
    return Series(name=name, x=tuple(x), points=tuple(map(point, values)), **more)

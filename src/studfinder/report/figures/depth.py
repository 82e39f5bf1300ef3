"""Where massive activations enter the residual stream, and where they leave it."""

from __future__ import annotations

from collections import Counter

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from studfinder.records import Findings
from studfinder.report.profile import Profile, magnitude
from studfinder.report.style import BLUE, CATEGORIES, GREY, INK, MARKERS, MUTED, ORANGE, WIDE, log_ticks, new_figure
from studfinder.report.words import dims_in_words

_TOP = 32
"""Entries of a layer that are drawn."""


def applies(findings: Findings, profile: Profile) -> bool:
    """Whether the residual stream was recorded."""
    return "residual.top" in profile and len(profile["residual.top"]) > 0


def _named(findings: Findings) -> list[int]:
    """The dims with a colour of their own."""
    found = [entry.dim for entry in findings.massive_activations]
    nearest = findings.summary.nearest_massive_activation
    if not found and nearest is not None:
        return [nearest.dim]
    return [dim for dim, _ in Counter(found).most_common(3)]


def draw(findings: Findings, profile: Profile, *, width: float = WIDE) -> Figure:
    """A column a layer: the largest |a| of the residual stream, its median, and the rule for "massive"."""
    wide = width > 600
    top = magnitude(profile["residual.top"][:, :_TOP])
    where = profile["residual.top.where"][:, :_TOP]
    median = magnitude(profile["residual.median"])
    x = np.arange(len(top)) - 1  # row 0 is the embedding
    figure = new_figure(width, 380 if wide else 340)
    axes = figure.add_subplot()
    _band(axes, findings, len(top) - 1, wide)
    named = _named(findings)
    for dim, colour, marker in [(None, GREY, "."), *zip(named, CATEGORIES, MARKERS, strict=False)]:
        chosen = ~np.isin(where[..., 2], named) if dim is None else where[..., 2] == dim
        rows, columns = np.nonzero(chosen & np.isfinite(top))
        label = ("other dims" if named else "largest entries") if dim is None else f"dim {dim}"
        size = 5 if dim is None else 5.5
        axes.plot(x[rows], top[rows, columns], marker, color=colour, markersize=size, mew=0, alpha=0.75, label=label)
    axes.step(x, median, where="mid", color=BLUE, linewidth=2, label="median |a|")
    at = findings.summary.thresholds
    rule = np.fmax(at.get("activation", 100.0), at.get("activation_ratio", 1000.0) * median)
    axes.step(x, rule, where="mid", color=INK, linewidth=1, linestyle=(0, (4, 3)), label="massive above this")
    axes.set(yscale="log", xlim=(-1.6, len(top) - 1.4))
    axes.set_xlabel("after layer")
    axes.set_ylabel("|a| in the residual stream")
    axes.set_ylim(top=8 * float(np.nanmax(np.append(top, rule))))  # room for the words above
    log_ticks(axes.yaxis)
    ticks = MaxNLocator(10 if wide else 6, integer=True).tick_values(0, len(top) - 2)
    first = 0 if len(top) < 12 else len(top) / 12  # "embed" needs its room
    ticks = [-1, *(int(tick) for tick in ticks if first <= tick < len(top) - 1)]
    axes.set_xticks(ticks, ["embed", *map(str, ticks[1:])])
    axes.grid(axis="y")
    figure.legend(loc="outside upper left", ncols=6 if wide else 2, borderaxespad=0.2)
    return figure


def _band(axes: Axes, findings: Findings, layers: int, wide: bool) -> None:
    enters, leaves = findings.summary.enters, findings.summary.leaves
    if enters is None or leaves is None:
        return
    axes.axvspan(enters - 0.5, leaves - 0.5, color=ORANGE, alpha=0.13, linewidth=0)
    last = f"leave after {leaves - 1}" if leaves < layers else "stay to the end"
    for text, x, side in ((f"enter at {enters}", enters - 0.5, "left"), (last, leaves - 0.5, "right")):
        if side == "right" and (leaves - enters) / layers < (0.25 if wide else 0.75):  # both would not fit
            continue
        offset = (4 if side == "left" else -4, -3)
        axes.annotate(
            text,
            (x, 1),
            xycoords=("data", "axes fraction"),
            xytext=offset,
            textcoords="offset points",
            ha=side,
            va="top",
            color=MUTED,
        )


def describe(findings: Findings, profile: Profile) -> str:
    """In words."""
    found, summary = findings.massive_activations, findings.summary
    if not found:
        nearest = summary.nearest_massive_activation
        miss = f" The largest is {nearest.ratio:,.0f} times its layer's median." if nearest is not None else ""
        return "Largest |a| of the residual stream by layer on a log axis; none is massive." + miss
    largest = max(found, key=lambda entry: abs(entry.value))
    return (
        f"Largest |a| of the residual stream by layer on a log axis. Massive activations in dims "
        f"{dims_in_words(entry.dim for entry in found)} enter at layer {summary.enters} and are last seen after layer "
        f"{(summary.leaves or 0) - 1}; the largest is {largest.value:,.0f}, {largest.ratio:,.0f} times the median."
    )

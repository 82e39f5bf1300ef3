"""The largest activations by layer, beside what formats can hold."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from studfinder.records import Findings
from studfinder.report.profile import Profile
from studfinder.report.ranges import LIMITS, layer_ranges
from studfinder.report.style import CATEGORIES, INK, MARKERS, MUTED, PAPER, WIDE, log_ticks, new_figure
from studfinder.report.words import number


def applies(findings: Findings, profile: Profile) -> bool:
    """Whether anything finite was read."""
    return any(np.isfinite(sizes).any() for sizes in layer_ranges(profile).values())


def draw(findings: Findings, profile: Profile, *, width: float = WIDE) -> Figure:
    """A line for what was read, a dashed one for each limit, named at its end."""
    wide, found = width > 600, layer_ranges(profile)
    figure = new_figure(width, 340 if wide else 330)
    axes = figure.add_subplot()
    for (name, sizes), colour, marker in zip(found.items(), CATEGORIES, MARKERS, strict=False):
        axes.plot(np.arange(len(sizes)), sizes, marker=marker, markersize=4, color=colour, label=f"largest |{name}|")
    layers = max(map(len, found.values()))
    for name, limit in LIMITS.items():
        axes.axhline(limit, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        at = (0.0, limit)
        below = name == "fp8 e5m2"  # fp16 is just above it
        axes.annotate(
            f"{name}: {limit:,.0f}",
            at,
            xycoords=("axes fraction", "data"),
            xytext=(3, -3 if below else 3),
            textcoords="offset points",
            ha="left",
            va="top" if below else "bottom",
            color=MUTED,
            fontsize=10,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.5},
            zorder=3,
        )
    seen = np.concatenate(list(found.values()))
    axes.set(yscale="log", xlim=(-0.6, layers - 0.4))
    axes.set_ylim(min(float(np.nanmin(seen)), 448.0) / 2, max(float(np.nanmax(seen)), 65_504.0) * 4)
    axes.set_xlabel("layer")
    axes.set_ylabel("largest |a|")
    axes.xaxis.set_major_locator(MaxNLocator(10 if wide else 6, integer=True))
    log_ticks(axes.yaxis)
    axes.grid(axis="y")
    figure.legend(loc="outside upper left", ncols=3 if wide else 1, borderaxespad=0.2)
    return figure


def describe(findings: Findings, profile: Profile) -> str:
    """In words."""
    parts = [
        f"largest |{name}| {number(float(np.nanmax(sizes)))} at layer {int(np.nanargmax(sizes))}"
        for name, sizes in layer_ranges(profile).items()
        if np.isfinite(sizes).any()
    ]
    limits = ", ".join(f"{name} {limit:,.0f}" for name, limit in LIMITS.items())
    return f"Largest activations by layer on a log axis: {'; '.join(parts)}. Limits: {limits}."

"""The largest input and output of each down projection."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from studfinder.records import Findings
from studfinder.report.profile import Profile, magnitude
from studfinder.report.style import BLUE, GREY, INK, MUTED, VERMILLION, WIDE, log_ticks, new_figure
from studfinder.report.words import number


def applies(findings: Findings, profile: Profile) -> bool:
    """Whether FFN traces were recorded."""
    return "spike.input" in profile and bool(np.isfinite(magnitude(profile["spike.input"])).any())


def _marked(findings: Findings) -> tuple[set[int], str]:
    """The layers in colour, and what the colour means."""
    if findings.proven:
        return {weight.layer for weight in findings.proven}, "layer with a proven super weight"
    if findings.super_weights:
        return {findings.super_weights[0].layer}, "layer of the strongest candidate"
    return set(), ""


def draw(findings: Findings, profile: Profile, *, width: float = WIDE) -> Figure:
    """Two panels over the same layers: the input of down_proj above, its output below."""
    wide = width > 600
    figure = new_figure(width, 420 if wide else 430)
    above, below = figure.subplots(2, 1, sharex=True)
    marked, meaning = _marked(findings)
    for axes, name in ((above, "input"), (below, "output")):
        _panel(axes, profile, name, marked, wide)
    median = magnitude(profile["spike.output.median"])
    below.step(np.arange(len(median)), median, where="mid", color=GREY, linewidth=1.5)
    below.set_xlabel("layer")
    below.xaxis.set_major_locator(MaxNLocator(10 if wide else 6, integer=True))
    key = [Line2D([], [], color=BLUE, marker="o", markersize=6, linewidth=1.6, label="largest |value|")]
    if marked:
        key.append(Line2D([], [], color=VERMILLION, marker="s", markersize=7, linewidth=2.4, label=meaning))
    key.append(Line2D([], [], color=GREY, linewidth=1.5, label="median |output|"))
    figure.legend(handles=key, loc="outside upper left", ncols=3 if wide else 1, borderaxespad=0.2)
    return figure


def _panel(axes: Axes, profile: Profile, name: str, marked: set[int], wide: bool) -> None:
    size = magnitude(profile[f"spike.{name}"])
    base = magnitude(profile["spike.output.median"]) if name == "output" else size
    known = np.append(size, base)
    low = float(np.nanmin(known)) if np.isfinite(known).any() else 1.0
    for layer, value in enumerate(size):
        colour, marker = (VERMILLION, "s") if layer in marked else (BLUE, "o")
        axes.plot([layer, layer], [low / 2, value], color=colour, linewidth=2.4 if layer in marked else 1.6)
        axes.plot(layer, value, marker, color=colour, markersize=7 if layer in marked else 5)
    peak = _peak(profile, name)
    if peak is None:
        axes.annotate(f"no {name} stands out", (0.5, 0.5), xycoords="axes fraction", ha="center", color=MUTED)
    else:
        channel = int(profile[f"spike.{name}.where"][peak, 2])
        side = "left" if peak < 0.7 * len(size) else "right"
        axes.annotate(
            f"{f'layer {peak}, channel' if wide else 'ch.'} {channel}: {number(float(profile[f'spike.{name}'][peak]))}",
            (peak, size[peak]),
            xytext=(9 if side == "left" else -9, 0),
            textcoords="offset points",
            ha=side,
            va="center",
            color=INK,
        )
    high = low * 10 if peak is None else size[peak]
    axes.set(yscale="log", xlim=(-0.7, len(size) - 0.3), ylim=(low / 2, high * 2.5))
    log_ticks(axes.yaxis)
    axes.set_ylabel(f"|{name}|", color=MUTED)
    axes.set_title(f"{name} of down_proj")
    axes.grid(axis="y")


def _peak(profile: Profile, name: str) -> int | None:
    """The layer with the largest one; None where no layer has one that stands out."""
    size = magnitude(profile[f"spike.{name}"])
    return int(np.nanargmax(size)) if np.isfinite(size).any() else None


def describe(findings: Findings, profile: Profile) -> str:
    """In words."""
    parts = []
    for name in ("input", "output"):
        peak = _peak(profile, name)
        if peak is None:
            parts.append(f"no {name} stands out")
            continue
        channel = int(profile[f"spike.{name}.where"][peak, 2])
        value = number(float(profile[f"spike.{name}"][peak]))
        parts.append(f"{name} peaks in layer {peak}, channel {channel}, at {value}")
    return "Largest absolute input and output of every layer's down projection on log axes: " + "; ".join(parts) + "."

"""How far each super-weight candidate stands out, before (or without) a proof."""

from __future__ import annotations

from math import isfinite

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from studfinder.records import Findings, SuperWeight
from studfinder.report.figures.effects import MOST_ROWS, tested
from studfinder.report.profile import Profile
from studfinder.report.style import BLUE, GREY, INK, MUTED, WIDE, log_ticks, new_figure
from studfinder.report.words import brief


def applies(findings: Findings, profile: Profile) -> bool:
    """Whether there is a candidate or a nearest miss, and nothing was proved that says more."""
    return not tested(findings) and bool(_shown(findings))


def _shown(findings: Findings) -> list[SuperWeight]:
    nearest = findings.summary.nearest_super_weight
    found = sorted(findings.super_weights, key=lambda weight: -weight.score)[:MOST_ROWS]
    return found or ([nearest] if nearest is not None else [])


def draw(findings: Findings, profile: Profile, *, width: float = WIDE) -> Figure:
    """A row a candidate: its term of the output, in medians of that layer's outputs, on a log axis."""
    weights, wide = _shown(findings), width > 600
    threshold = findings.summary.thresholds.get("score", 50.0)
    figure = new_figure(width, (96 if wide else 118) + (27 if wide else 24) * len(weights))
    axes = figure.add_subplot()
    found = bool(findings.super_weights)
    left = min([threshold, *(weight.score for weight in weights if weight.score > 0)]) / 2
    for y, weight in enumerate(weights):
        axes.plot([left, weight.score], [y, y], color=GREY, linewidth=1)
        axes.plot(weight.score, y, "o", color=BLUE, markersize=8.5, mfc="none", mew=1.8)
        if wide:
            text = f"weight {weight.value:+.3g}, {weight.share:.0%} of the output"
            axes.annotate(text, (1.01, y), xycoords=("axes fraction", "data"), va="center", color=MUTED)
    axes.axvline(threshold, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    right = max([threshold, *(weight.score for weight in weights if isfinite(weight.score))]) * 2
    axes.set(xscale="log", xlim=(left, right), ylim=(len(weights) - 0.4, -0.6))
    axes.set_xlabel("score: |input x weight| / the layer's median |output|" if wide else "score, medians of the layer")
    log_ticks(axes.xaxis, most=8 if wide else 4)
    axes.set_yticks(range(len(weights)), [brief(weight) for weight in weights])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    name = "candidate, not tested" if found else "nearest miss"
    key = [
        Line2D([], [], color=BLUE, marker="o", markersize=8, mfc="none", mew=1.8, linewidth=0, label=name),
        Line2D([], [], color=INK, linewidth=1, linestyle=(0, (4, 3)), label=f"threshold ({threshold:g})"),
    ]
    figure.legend(handles=key, loc="outside upper left", ncols=2, borderaxespad=0.2)
    return figure


def describe(findings: Findings, profile: Profile) -> str:
    """In words."""
    what = "Candidates" if findings.super_weights else "The nearest miss"
    rows = "; ".join(f"{weight}: score {weight.score:,.0f}" for weight in _shown(findings))
    threshold = findings.summary.thresholds.get("score", 50.0)
    return f"{what} by score on a log axis, threshold {threshold:g}. {rows}."

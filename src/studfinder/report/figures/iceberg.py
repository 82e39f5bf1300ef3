"""How many numbers of the model are predicted to carry how much."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter

from studfinder.records import CensusCard, Findings
from studfinder.report.profile import Profile
from studfinder.report.style import INK, KIND_LOOKS, MUTED, PAPER, RULE, WIDE, log_ticks, new_figure

_LEAST = -9
"""Decades below this one are one row."""


def applies(findings: Findings, profile: Profile) -> bool:
    """Whether there was a census."""
    return findings.census is not None


def _decades(card: CensusCard) -> tuple[list[int], dict[str, np.ndarray]]:
    """The decades that are drawn, the largest first, and by kind how many numbers lie in each; at the end how many lie
    below all of them, exactly 0 among them."""
    counts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(card.places[0].decades), dtype=np.int64))
    for place in card.places:
        counts[place.kind] += place.decades
    filled = np.flatnonzero(np.sum(list(counts.values()), axis=0)[1:])
    most = max(_LEAST, card.least_decade + int(filled[-1]) if len(filled) else _LEAST)
    decades = list(range(most, _LEAST - 1, -1))
    at = [decade - card.least_decade + 1 for decade in decades]
    kinds = [kind for kind in KIND_LOOKS if kind in counts]
    return decades, {kind: np.append(counts[kind][at], counts[kind][: at[-1]].sum()) for kind in kinds}


def draw(findings: Findings, profile: Profile, *, width: float = WIDE) -> Figure:
    """A row a decade of predicted KL, the largest on top: a bar of all its numbers, and a mark for each kind."""
    card = findings.census
    assert card is not None
    decades, counts = _decades(card)
    total, wide = np.sum(list(counts.values()), axis=0), width > 600
    figure = new_figure(width, (110 if wide else 150) + 25 * len(total))
    axes = figure.add_subplot()
    # A decade stands between its ends on the axis; what is less has a row below a gap.
    middles = [decade + 0.5 for decade in decades] + [decades[-1] - 1.0]
    axes.barh(middles, total - 0.6, left=0.6, height=0.82, color=RULE)
    for kind, each in counts.items():
        colour, marker = KIND_LOOKS[kind]
        seen = each > 0
        axes.plot(each[seen], np.array(middles)[seen], marker, color=colour, markersize=6.5, mew=0)
    for y, n in zip(middles, total, strict=True):
        behind = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.5}  # the threshold may run through it
        at = (max(n, 0.6), y)
        axes.annotate(
            f"{n:,}", at, xytext=(9, 0), textcoords="offset points", va="center", color=MUTED, bbox=behind, zorder=3
        )
    axes.axhline(math.log10(card.threshold), color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set(xscale="log", xlim=(0.6, 12 * max(1, int(total.max()))), ylim=(middles[-1] - 0.6, decades[0] + 1.1))
    axes.set_xlabel("how many numbers of the model" if wide else "how many numbers")
    axes.set_ylabel("predicted KL of each, nats per token" if wide else "predicted KL, nats per token")
    log_ticks(axes.xaxis, most=10 if wide else 5)
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    ends = [decades[0] + 1, *decades]
    axes.set_yticks([*ends, middles[-1]], [*map(_power, ends), "less"])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    key: list[Line2D | Patch] = [Patch(color=RULE, label="all")]
    for kind in counts:
        colour, marker = KIND_LOOKS[kind]
        key.append(Line2D([], [], color=colour, marker=marker, markersize=7, mew=0, linewidth=0, label=kind))
    line = f"{card.threshold:g} nats"
    key.append(Line2D([], [], color=INK, linewidth=1, linestyle=(0, (4, 3)), label=line))
    figure.legend(handles=key, loc="outside upper left", ncols=8 if wide else 2, borderaxespad=0.2)
    return figure


def _power(decade: int) -> str:
    return f"{10.0**decade:g}" if decade >= -4 else f"1e{decade}"


def describe(findings: Findings, profile: Profile) -> str:
    """In words."""
    card = findings.census
    assert card is not None
    decades, counts = _decades(card)
    total = np.sum(list(counts.values()), axis=0)
    rows = [f"{_power(decade)} to {_power(decade + 1)} nats: {n:,}" for decade, n in zip(decades, total, strict=False)]
    return (
        f"Bars on a log axis: how many of {card.numbers:,} numbers lie in each decade of predicted KL. "
        + "; ".join(rows)
        + f"; less: {int(total[-1]):,}."
    )

"""Whether what is predicted of a number is what it does."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from studfinder.records import Findings, Interval, OtherNumber, SuperWeight
from studfinder.report.profile import Profile
from studfinder.report.style import INK, KIND_LOOKS, MUTED, PAPER, WIDE, log_ticks, new_figure
from studfinder.report.words import brief, count, number_kind

_NAMED = 5
"""Numbers with their names beside them, those that carry most."""


class _Edit(NamedTuple):
    """An edit that was predicted and measured."""

    name: str
    kind: str
    predicted: float
    kl: Interval
    proven: bool


def applies(findings: Findings, profile: Profile) -> bool:
    """Whether something was predicted and measured."""
    return bool(_points(findings))


def _points(findings: Findings) -> list[_Edit]:
    """Every number that was tested, and of gains 1 + w the factor at zero too; what carries most first."""
    numbers: list[SuperWeight | OtherNumber] = [*findings.super_weights, *findings.other_numbers]
    found = []
    for one in numbers:
        edits = [(brief(one), one.predicted, one.effect)]
        if isinstance(one, OtherNumber):
            edits.append((f"{brief(one)}, factor at 0", one.predicted_off, one.effect_off))
        for name, predicted, effect in edits:
            if predicted and effect is not None:
                proven = one.verdict in ("proven", "proven-jointly")
                found.append(_Edit(name, number_kind(one), predicted, effect.kl, proven))
    return sorted(found, key=lambda point: -point.kl.value)


def draw(findings: Findings, profile: Profile, *, width: float = WIDE) -> Figure:
    """A point an edit, on log axes, with its interval and the line of what is as predicted."""
    shown, wide = _points(findings), width > 600
    figure = new_figure(width, 520 if wide else 430)
    axes = figure.add_subplot()
    x, y = _limits([p.predicted for p in shown]), _limits([p.kl.value for p in shown])
    ends = (min(x[0], y[0]), max(x[1], y[1]))
    axes.plot(ends, ends, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    for edit in reversed(shown):
        colour, marker = KIND_LOOKS[edit.kind]
        low, middle, high = (min(max(kl, y[0] * 1.1), y[1] / 1.1) for kl in (edit.kl.low, edit.kl.value, edit.kl.high))
        axes.plot([edit.predicted] * 2, [low, high], color=colour, linewidth=1.2, alpha=0.6)
        fill = colour if edit.proven else "none"
        axes.plot(edit.predicted, middle, marker, color=colour, markersize=7, mfc=fill, mew=1.4)
    _name(axes, shown, (x, y), width)
    axes.set(xscale="log", yscale="log", xlim=x, ylim=y)
    axes.set_xlabel("predicted KL, nats per token")
    axes.set_ylabel("measured KL, nats per token")
    log_ticks(axes.xaxis, most=8 if wide else 5)
    log_ticks(axes.yaxis)
    axes.grid()
    key = [
        Line2D([], [], color=KIND_LOOKS[kind][0], marker=KIND_LOOKS[kind][1], markersize=7, linewidth=0, label=kind)
        for kind in KIND_LOOKS
        if any(point.kind == kind for point in shown)
    ]
    if not all(point.proven for point in shown):
        hollow = Line2D([], [], color=MUTED, marker="o", mfc="none", mew=1.4, markersize=7, linewidth=0)
        hollow.set_label("hollow: not proven")
        key.append(hollow)
    key.append(Line2D([], [], color=INK, linewidth=1, linestyle=(0, (4, 3)), label="as predicted"))
    figure.legend(handles=key, loc="outside upper left", ncols=8 if wide else 2, borderaxespad=0.2)
    return figure


def _limits(values: list[float]) -> tuple[float, float]:
    kept = [value for value in values if 0 < value < inf] or [0.01]
    return max(min(kept) / 2, max(kept) * 1e-7), 2 * max(kept)


def _name(axes: Axes, shown: list[_Edit], limits: Sequence[tuple[float, float]], width: float) -> None:
    """The names of those that carry most, one left out where it would hide another name or a point."""
    spots = [
        [
            float(np.log(min(max(value, low), high) / low) / np.log(high / low))
            for value, (low, high) in zip(of, limits, strict=True)
        ]
        for of in ((edit.predicted, edit.kl.value) for edit in shown)
    ]
    letter, line, gap = 7.5 / width, 0.035, 9 / width
    taken: list[tuple[float, float, float]] = [(up, at, at) for at, up in spots]
    for edit, (at, up) in zip(shown, spots, strict=True):
        long = letter * len(edit.name)
        left = at + gap + long > 1
        start, end = (at - gap - long, at - gap) if left else (at + gap, at + gap + long)
        if any(abs(up - other) < line and start < last and first < end for other, first, last in taken):
            continue
        taken.append((up, start, end))
        side, offset = ("right", -9) if left else ("left", 9)
        behind = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.0}  # the line of what is as predicted
        axes.annotate(
            edit.name,
            (at, up),
            xycoords="axes fraction",
            xytext=(offset, 0),
            textcoords="offset points",
            ha=side,
            va="center",
            color=INK,
            bbox=behind,
        )
        if len(taken) == len(shown) + (_NAMED if width > 600 else 2):
            return


def describe(findings: Findings, profile: Profile) -> str:
    """In words."""
    shown = _points(findings)
    close = sum(1 / 3 <= point.kl.value / point.predicted <= 3 for point in shown)
    rows = "; ".join(f"{p.name}: predicted {p.predicted:.2g}, measured {p.kl}" for p in shown[:8])
    return (
        f"Measured against predicted KL in nats per token of {count(len(shown), 'edit')}, on log axes; {close} of them "
        f"within a factor of 3. What carries most: {rows}."
    )

"""Scorecards as a table and a figure, one or several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from studfinder.records import Cell, Interval, Measured, Scorecard, Table
from studfinder.report.style import BLUE, CATEGORIES, GREY, INK, MUTED, VERMILLION, log_ticks, new_figure
from studfinder.visible import visible

_KINDS = ("fluency", "context", "memory", "reasoning")


def tables(cards: Sequence[Scorecard]) -> list[Table]:
    """One table: of one card with its baseline and change, of several their scores side by side."""
    return [_single(cards[0]) if len(cards) == 1 else _several(cards)]


def _single(card: Scorecard) -> Table:
    before = card.against
    columns = ("measure", "about", *(("before", "after", "change") if before else ("score",)), "chance", "remark")
    rows: list[tuple[Cell, ...]] = []
    for line in _sorted(card):
        scores: tuple[Cell, ...] = (line.baseline, line.score, line.change) if before else (line.score,)
        rows.append((line.measure, line.kind, *scores, line.chance, _remark(line)))
    note = "Intervals: 95 %, bootstrap over items."
    if before:
        note += " Change: paired within items; × is a ratio, +/- a difference."
    return Table(title=f"{card.model.id}: scorecard", columns=columns, rows=tuple(rows), note=note)


def _remark(line: Measured) -> str:
    if line.score is None:
        return f"not measured: {line.why_not}"
    remarks = [line.why_not] if line.why_not else []
    if line.headroom is False:
        remarks.append("no headroom: at chance before, so it can show nothing")
    if line.change is not None:
        if line.change.changed:
            worse = (line.change.interval.value > (line.change.kind == "ratio")) == (line.better == "lower")
            remarks.append("worse" if worse else "better")
        else:
            remarks.append("no change seen")
        if line.change.p is not None:
            remarks.append(f"McNemar p {line.change.p:.2g}")
    return ", ".join(remarks)


def _several(cards: Sequence[Scorecard]) -> Table:
    names = [card.model.id + (" edited" if card.edits else "") for card in cards]
    if len(set(names)) < len(names):
        names = [f"{name} ({card.run.key})" for name, card in zip(names, cards, strict=True)]
    measures = list(dict.fromkeys(line.measure for card in cards for line in _sorted(card)))
    rows: list[tuple[Cell, ...]] = []
    for measure in measures:
        found = [next((line for line in card.measured if line.measure == measure), None) for card in cards]
        kind = next(line.kind for line in found if line is not None)
        chance = next((line.chance for line in found if line is not None), None)
        rows.append((measure, kind, *(line.score if line else None for line in found), chance))
    return Table(title="scorecards side by side", columns=("measure", "about", *names, "chance"), rows=tuple(rows))


def _sorted(card: Scorecard) -> list[Measured]:
    return sorted(card.measured, key=lambda line: _KINDS.index(line.kind))


def draw_scorecard(cards: Sequence[Scorecard], width: float) -> Figure:
    """Shares from 0 to 1 with their intervals, the baseline hollow and chance as a tick; perplexities below."""
    shares = [line for line in _sorted(cards[0]) if line.score is not None and line.chance is not None]
    ratios = [line for line in cards[0].measured if line.score is not None and line.measure.startswith("perplexity")]
    wide = width > 600
    heights = [max(1, len(shares)), max(1, len(ratios))]
    figure = new_figure(width, (120 if wide else 190) + 34 * sum(heights))
    top, bottom = figure.subplots(2, 1, height_ratios=[heights[0] + 0.5, heights[1] + 0.5])
    _rows(top, cards, [line.measure for line in shares])
    top.set(xlim=(-0.02, 1.02), xlabel="share right")
    _rows(bottom, cards, [line.measure for line in ratios])
    bottom.set(xlabel="perplexity")
    if any(isfinite(line.score.value) and line.score.value > 0 for line in ratios if line.score is not None):
        bottom.set(xscale="log")
        log_ticks(bottom.xaxis)
    key = [Line2D([], [], color=GREY, marker="|", markersize=12, mew=2, linewidth=0, label="chance")]
    if cards[0].against and len(cards) == 1:
        key += [
            Line2D([], [], color=BLUE, marker="o", mfc="none", mew=1.8, linewidth=2, label="before"),
            Line2D([], [], color=VERMILLION, marker="o", linewidth=2, label="after"),
        ]
    else:
        key += [
            Line2D([], [], color=colour, marker="o", linewidth=2, label=visible(card.model.id))
            for card, colour in zip(cards, CATEGORIES, strict=False)
        ]
    figure.legend(handles=key, loc="outside upper left", ncols=4 if wide else 1)
    return figure


def _rows(axes: Axes, cards: Sequence[Scorecard], measures: list[str]) -> None:
    for y, measure in enumerate(measures):
        for place, card in enumerate(cards):
            line = next((line for line in card.measured if line.measure == measure), None)
            if line is None or line.score is None:
                continue
            step = 0.16
            if line.baseline is not None and len(cards) == 1:
                _point(axes, y - step / 2, line.baseline, BLUE, hollow=True)
                _point(axes, y + step / 2, line.score, VERMILLION)
            else:
                _point(axes, y + step * (place - (len(cards) - 1) / 2), line.score, CATEGORIES[place % len(CATEGORIES)])
            if line.chance is not None:
                axes.plot(line.chance, y, "|", color=GREY, markersize=16, mew=2)
    axes.set_yticks(range(len(measures)), measures)
    axes.set_ylim(max(len(measures), 1) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.tick_params(axis="x", labelcolor=MUTED)
    axes.grid(axis="x")


def _point(axes: Axes, y: float, interval: Interval, colour: str, *, hollow: bool = False) -> None:
    axes.plot([interval.low, interval.high], [y, y], color=colour, linewidth=2)
    axes.plot(interval.value, y, "o", color=colour, markersize=7, mfc="none" if hollow else colour, mew=1.8)

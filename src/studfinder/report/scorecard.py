"""Scorecards as a table and a figure, one or several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

from matplotlib.figure import Figure

from studfinder.records import Cell, Chart, Measured, Plot, Scorecard, Series, Table, point
from studfinder.report.charts import draw_chart

_KINDS = ("fluency", "context", "memory", "reasoning")


def tables(cards: Sequence[Scorecard]) -> list[Table]:
    """Of one card a table with its baseline and change, and one of the measures without headroom; of several their
    scores side by side."""
    if len(cards) > 1:
        return [_several(cards)]
    lines = _sorted(cards[0])
    shown = [line for line in lines if line.headroom is not False]
    found = [_single(cards[0], shown, "scorecard")] if shown or not lines else []
    if len(shown) < len(lines):
        silent = [line for line in lines if line.headroom is False]
        note = "At chance before anything was done, so these can show nothing."
        found.append(replace(_single(cards[0], silent, "no headroom"), note=note))
    return found


def scorecard_verdict(card: Scorecard) -> list[str]:
    """What a scorecard says, in a sentence or two."""
    lines = _sorted(card)
    changed = [line for line in lines if line.change is not None and line.headroom is not False]
    groups = {
        "Worse": [line for line in changed if line.worse],
        "Better": [line for line in changed if line.change is not None and line.change.changed and not line.worse],
        "No change seen": [line for line in changed if line.change is not None and not line.change.changed],
    }
    if not card.against:
        seen = [line for line in lines if line.score is not None and line.chance is not None]
        groups = {"Above chance": [line for line in seen if line.headroom is not False]}
    groups |= {
        "No headroom, at chance": [line for line in lines if line.headroom is False],
        "Not measured": [line for line in lines if line.score is None],
    }
    return [f"{name}: {', '.join(line.measure for line in of)}." for name, of in groups.items() if of]


def _single(card: Scorecard, lines: Sequence[Measured], title: str) -> Table:
    before = card.against
    columns = ("measure", "about", *(("before", "after", "change") if before else ("score",)), "chance", "remark")
    rows: list[tuple[Cell, ...]] = []
    for line in lines:
        scores: tuple[Cell, ...] = (line.baseline, line.score, line.change) if before else (line.score,)
        rows.append((line.measure, line.kind, *scores, line.chance, _remark(line)))
    note = "Intervals: 95 %, bootstrap over items."
    if before:
        note += " Change: paired within items; × is a ratio, +/- a difference."
    return Table(title=f"{card.model.id}: {title}", columns=columns, rows=tuple(rows), note=note)


def _remark(line: Measured) -> str:
    if line.score is None:
        return f"not measured: {line.why_not}"
    remarks = [line.why_not] if line.why_not else []
    if line.headroom is False:
        remarks.append("no headroom")
    if line.change is not None:
        if line.change.changed:
            remarks.append("worse" if line.worse else "better")
        else:
            remarks.append("no change seen")
        if line.change.p is not None:
            remarks.append(f"McNemar p {line.change.p:.2g}")
    return ", ".join(remarks)


_MANY = 4
"""Up to so many scorecards each have a column; more have a row each."""


def _several(cards: Sequence[Scorecard]) -> Table:
    measures = list(dict.fromkeys(line.measure for card in cards for line in _sorted(card)))
    rows: list[tuple[Cell, ...]] = []
    if len(cards) > _MANY:
        for name, card in zip(_names(cards), cards, strict=True):
            lines = [_line(card, measure) for measure in measures]
            rows.append((name, *(line.score if line else None for line in lines)))
        return Table(title="scorecards side by side", columns=("model", *measures), rows=tuple(rows))
    for measure in measures:
        found = [_line(card, measure) for card in cards]
        kind = next(line.kind for line in found if line is not None)
        chance = next((line.chance for line in found if line is not None), None)
        rows.append((measure, kind, *(line.score if line else None for line in found), chance))
    columns = ("measure", "about", *_names(cards), "chance")
    return Table(title="scorecards side by side", columns=columns, rows=tuple(rows))


def _names(cards: Sequence[Scorecard]) -> list[str]:
    names = [card.model.id + (" edited" if card.edits else "") for card in cards]
    if len(set(names)) < len(names):
        return [f"{name} ({card.run.key})" for name, card in zip(names, cards, strict=True)]
    return names


def _line(card: Scorecard, measure: str) -> Measured | None:
    return next((line for line in card.measured if line.measure == measure), None)


def _sorted(card: Scorecard) -> list[Measured]:
    return sorted(card.measured, key=lambda line: _KINDS.index(line.kind))


def draw_scorecard(cards: Sequence[Scorecard], width: float) -> Figure | None:
    """Shares with their intervals and chance, and perplexities; None where there is neither."""
    done = [line for line in _sorted(cards[0]) if line.score is not None]
    shares = [line.measure for line in done if line.chance is not None]
    ratios = [line for line in done if line.measure.startswith("perplexity")]
    log = any(line.score is not None and 0 < line.score.value < inf for line in ratios)
    plots = (
        Plot(kind="dots", rows=tuple(shares), series=_series(cards, shares), x="share right", percent=True),
        Plot(
            kind="dots",
            rows=tuple(line.measure for line in ratios),
            series=_series(cards, [line.measure for line in ratios]),
            x="perplexity",
            log=log,
        ),
    )
    chart = Chart(name="scorecard", plots=tuple(plot for plot in plots if plot.rows))
    return draw_chart(chart, width) if chart.plots else None


def _series(cards: Sequence[Scorecard], measures: Sequence[str]) -> tuple[Series, ...]:
    """The scores of each card (of one alone before and after, where it has both), and what guessing scores."""

    def series(name: str, card: Scorecard, field: str, quiet: bool = False) -> Series:
        found = (getattr(_line(card, measure), field, None) for measure in measures)
        return Series(name=name, points=tuple(map(point, found)), quiet=quiet)

    if len(cards) == 1 and cards[0].against:
        scores = [series("before", cards[0], "baseline"), series("after", cards[0], "score")]
    else:
        scores = [series(name, card, "score") for name, card in zip(_names(cards), cards, strict=True)]
    return (*scores, series("chance", cards[0], "chance", quiet=True))

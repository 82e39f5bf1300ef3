"""A result as one Markdown file and as one HTML page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from markupsafe import Markup
from matplotlib.figure import Figure

from studfinder.records import ModelCard, RunCard, Table
from studfinder.report.cells import is_number, markdown, text
from studfinder.report.escaped import code, for_markdown
from studfinder.report.html import render
from studfinder.report.style import NARROW, WIDE, attempted, inline_svg, styled


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure of a result: drawn for a wide screen (and for files) and for a phone, and said in words."""

    wide: Figure
    narrow: Figure
    description: str


def drawing(name: str, draw: Callable[[float], Figure | None], description: str) -> Drawing | None:
    """Draw a figure wide and narrow; None where it cannot be drawn, which is said, or where `draw` gives none."""

    def both() -> Drawing | None:
        with styled():
            wide, narrow = draw(WIDE), draw(NARROW)
        return None if wide is None or narrow is None else Drawing(wide=wide, narrow=narrow, description=description)

    return attempted(name, both)


@dataclass(frozen=True, kw_only=True)
class Paste:
    """A text to be copied from the page: what it is, and itself."""

    title: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """What a person reads of a result.

    Attributes:
        title, lead: what it is, and what it asks.
        models, run: what it was made from.
        tables, notes, charts: what was measured, what that says, and how it looks.
        pastes: what the page has to copy; elsewhere they are files of their own.
    """

    title: str
    lead: str
    models: Sequence[ModelCard]
    run: RunCard
    tables: Sequence[Table]
    notes: Sequence[str] = ()
    charts: Mapping[str, Drawing] = field(default_factory=dict)
    pastes: Sequence[Paste] = ()


def markdown_sheet(sheet: Sheet) -> str:
    """All of it but the figures."""
    names = ", ".join(f"{card.id} ({card.origin}, {card.dtype})" for card in sheet.models) or "its own, made here"
    made = f"Models: {for_markdown(names)}. Command: {code(sheet.run.command)}"
    lines = [f"# {for_markdown(sheet.title)}", "", for_markdown(sheet.lead), "", made, ""]
    lines += [f"* {for_markdown(note)}" for note in sheet.notes]
    return "\n".join([*lines, "", *(markdown(table) for table in sheet.tables)]).rstrip() + "\n"


def html_sheet(sheet: Sheet) -> str:
    """All of it, in one file that loads nothing."""
    charts = [
        (name, drawn, chart.description)
        for name, chart in sheet.charts.items()
        if (drawn := attempted(name, partial(_drawn, name, chart))) is not None
    ]
    return render("result.html", sheet=sheet, charts=charts, cell=text, is_number=is_number)


def _drawn(name: str, chart: Drawing) -> Markup:
    def svg(figure: Figure, size: str) -> Markup:
        return inline_svg(figure, name=f"{name}-{size}", title=name, description=chart.description, css=f"chart {size}")

    return svg(chart.wide, "wide") + svg(chart.narrow, "narrow")

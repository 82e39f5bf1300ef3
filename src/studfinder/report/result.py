"""A result as one Markdown file and as one HTML page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from markupsafe import Markup
from matplotlib.figure import Figure

from studfinder.records import ModelCard, RunCard, Table
from studfinder.report.cells import is_number, markdown, text
from studfinder.report.document import document
from studfinder.report.escaped import code, for_markdown
from studfinder.report.next_steps import next_steps
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
        record: that it shows, which says what to run next; None where there is no single one.
    """

    title: str
    lead: str
    models: Sequence[ModelCard]
    run: RunCard
    tables: Sequence[Table]
    notes: Sequence[str] = ()
    charts: Mapping[str, Drawing] = field(default_factory=dict)
    pastes: Sequence[Paste] = ()
    record: object = None


def markdown_sheet(sheet: Sheet) -> str:
    """All of it but the figures."""
    names = ", ".join(f"{card.id} ({card.origin}, {card.dtype})" for card in sheet.models) or "its own, made here"
    made = f"Models: {for_markdown(names)}. Command: {code(sheet.run.command)}"
    lines = [f"# {for_markdown(sheet.title)}", "", for_markdown(sheet.lead), "", made, ""]
    lines += [f"* {for_markdown(note)}" for note in sheet.notes]
    return "\n".join([*lines, "", *(markdown(table) for table in sheet.tables)]).rstrip() + "\n"


def html_sheet(sheet: Sheet, run: str = "") -> str:
    """All of it, in one file that loads nothing; `run` is its folder as a user would type it."""
    charts = [
        (name, _titled(name), drawn, chart.description)
        for name, chart in sheet.charts.items()
        if (drawn := attempted(name, partial(_drawn, name, chart))) is not None
    ]
    return document(
        "result.html",
        title=sheet.title,
        about=sheet.run.verb,
        beside=sheet.run.started,
        sheet=sheet,
        steps=next_steps(sheet.record, run),
        charts=charts,
        cell=text,
        is_number=is_number,
    )


def _titled(name: str) -> str:
    """The name of a figure's file as a heading."""
    words = name.replace("-", " ")
    return words[:1].upper() + words[1:]


def _drawn(name: str, chart: Drawing) -> Markup:
    def svg(figure: Figure, size: str) -> Markup:
        return inline_svg(
            figure, name=f"{name}-{size}", title=_titled(name), description=chart.description, css=f"chart {size}"
        )

    return svg(chart.wide, "wide") + svg(chart.narrow, "narrow")

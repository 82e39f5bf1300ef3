"""Tables of results as Markdown, CSV and in the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table as RichTable

from studfinder.records import Cell, Comparison, Interval, Table
from studfinder.report.escaped import for_csv, for_markdown
from studfinder.report.screen import Screen
from studfinder.report.words import number


def text(cell: Cell) -> str:
    """A cell to read: 5.08 [4.47, 5.78], ×1.52 [1.4, 1.6], -0.12 [-0.2, -0.05], 21,624."""
    if cell is None:
        return "–"
    if isinstance(cell, Comparison):
        inside = cell.interval
        if cell.kind == "ratio":
            return f"×{number(inside.value)} [{number(inside.low)}, {number(inside.high)}]"
        return f"{_signed(inside.value)} [{_signed(inside.low)}, {_signed(inside.high)}]"
    if isinstance(cell, Interval):
        return f"{number(cell.value)} [{number(cell.low)}, {number(cell.high)}]"
    if isinstance(cell, float):
        return number(cell, 4)
    return f"{cell:,}" if isinstance(cell, int) else cell


def _signed(value: float) -> str:
    # What is left of a sum that should be zero is not a number to read.
    return "+0" if abs(value) < 1e-12 else f"{value:+.3g}"


def is_number(cell: Cell) -> bool:
    """Whether the cell belongs on the right of its column."""
    return cell is not None and not isinstance(cell, str)


def markdown(table: Table) -> str:
    """A table as GitHub Markdown, under its title."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def shown(cell: Cell) -> str:
        return for_markdown(cell) if isinstance(cell, str) else text(cell)

    right = [_numeric(table, column) for column in range(len(table.columns))]
    columns = [for_markdown(name) for name in table.columns]
    lines = [f"### {for_markdown(table.title)}", "", line(columns), line(["---:" if side else "---" for side in right])]
    lines += [line([shown(cell) for cell in row]) for row in table.rows]
    return "\n".join([*lines, "", *([for_markdown(table.note), ""] if table.note else [])])


def as_csv(table: Table) -> str:
    """A table as CSV: a number with uncertainty takes three columns, value, low and high."""
    wide = [any(isinstance(row[c], (Interval, Comparison)) for row in table.rows) for c in range(len(table.columns))]
    header: list[str] = []
    for column, has in zip(table.columns, wide, strict=True):
        header += [column, f"{column} low", f"{column} high"] if has else [column]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(for_csv, header))
    for row in table.rows:
        cells: list[object] = []
        for cell, has in zip(row, wide, strict=True):
            inside = cell.interval if isinstance(cell, Comparison) else cell
            if isinstance(inside, Interval):
                cells += [inside.value, inside.low, inside.high]
            else:
                cells += [inside, None, None] if has else [inside]
        writer.writerow(map(for_csv, cells))
    return out.getvalue()


def print_table(table: Table, console: Screen) -> None:
    """A table in the terminal."""
    shown = RichTable(title=table.title, title_justify="left", title_style="bold", box=None, header_style="dim")
    for column, name in enumerate(table.columns):
        shown.add_column(name, justify="right" if _numeric(table, column) else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*(text(cell) for cell in row))
    console.print(shown)
    if table.note:
        console.print(table.note, style="dim")


def _numeric(table: Table, column: int) -> bool:
    cells = [row[column] for row in table.rows if row[column] is not None]
    return bool(cells) and all(is_number(cell) for cell in cells)


def print_sheet(title: str, tables: Sequence[Table], notes: Sequence[str], folder: Path | None) -> None:
    """A result in the terminal: its tables, what they say, and where the rest is."""
    console = Screen()
    for table in tables:
        console.print()
        print_table(table, console)
    if notes:
        console.print()
    for note in notes:
        console.print(f"• {note}")
    if folder is not None:
        console.print()
        console.print(f"report    {folder}/report.html", soft_wrap=True)

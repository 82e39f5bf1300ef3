"""The folder of a result: table.md, table.csv, figures and a page."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from studfinder.report.cells import as_csv
from studfinder.report.result import Sheet, html_sheet, markdown_sheet
from studfinder.report.style import save
from studfinder.runs import drawn, write_bytes, write_text


def write_sheet(folder: Path, sheet: Sheet) -> Path:
    """Write everything that a person reads of a result; returns the page.

    `table.md` holds the notes and all tables; `table.csv` the first table, `table-2.csv` the second, and so on;
    `figure-NAME.png` and `.svg`; `report.html` all of it in one file.
    """
    files: dict[str, str] = {"table.md": markdown_sheet(sheet)}
    for place, table in enumerate(sheet.tables, 1):
        files["table.csv" if place == 1 else f"table-{place}.csv"] = as_csv(table)
    files["report.html"] = html_sheet(sheet)
    for name, content in files.items():
        write_text(folder / name, content)
    figures = [f"figure-{name}.{kind}" for name in sheet.charts for kind in ("png", "svg")]
    for file in figures:
        name, kind = file.removeprefix("figure-").rsplit(".", 1)
        write_bytes(folder / file, partial(save, sheet.charts[name].wide, kind=kind, name=name))
    drawn(folder, [*files, *figures])
    return folder / "report.html"

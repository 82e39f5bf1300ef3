"""The folder of a result: table.md, table.csv, figures and a page."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from studfinder.recipes import tool_named
from studfinder.records import Diagnosis, Equivalence, Plan, Quantization, Sensitivity, Training
from studfinder.report.cells import as_csv
from studfinder.report.diagnosis import diagnosis_sheet
from studfinder.report.equivalence import equivalence_sheet
from studfinder.report.plan import plan_sheet
from studfinder.report.quantization import quantization_sheet
from studfinder.report.result import Drawing, Sheet, html_sheet, markdown_sheet
from studfinder.report.style import attempted, rendered
from studfinder.report.training import training_sheet
from studfinder.runs import drawn, kind_of, read, write_bytes, write_text, writes_to


def write_sheet(folder: Path, sheet: Sheet, run: Path | None = None) -> Path:
    """Write everything that a person reads of a result; returns the page.

    `table.md` holds the notes and all tables; `table.csv` the first table, `table-2.csv` the second, and so on;
    `figure-NAME.png` and `.svg`; `report.html` all of it in one file. A figure that cannot be drawn is named on stderr,
    and left out.

    Args:
        run: the folder of the run that it tells of, if that is not `folder` (or what that becomes when it is done).
    """
    drawings = {name: files for name, chart in sheet.charts.items() if (files := _files(name, chart)) is not None}
    sheet = replace(sheet, charts={name: sheet.charts[name] for name in drawings})
    texts: dict[str, str] = {"table.md": markdown_sheet(sheet)}
    for place, table in enumerate(sheet.tables, 1):
        texts["table.csv" if place == 1 else f"table-{place}.csv"] = as_csv(table)
    texts["report.html"] = html_sheet(sheet, str(run or folder.with_name(folder.name.removesuffix(".partial"))))
    for name, content in texts.items():
        write_text(folder / name, content)
    figures = {file: data for files in drawings.values() for file, data in files.items()}
    for file, data in figures.items():
        write_bytes(folder / file, partial(Path.write_bytes, data=data))
    drawn(folder, [*texts, *figures])
    return folder / "report.html"


def _files(name: str, chart: Drawing) -> dict[str, bytes] | None:
    def draw() -> dict[str, bytes]:
        return {f"figure-{name}.{kind}": rendered(chart.wide, kind=kind, name=name) for kind in ("png", "svg")}

    return attempted(name, draw)


def write_plan(folder: Path, plan: Plan, costs: Sensitivity) -> Path:
    """The tables, figures and page of a plan, with what its tools read; returns the page."""
    return write_sheet(folder, plan_sheet(plan, costs, _pasted(folder, plan)))


def _pasted(folder: Path, plan: Plan) -> dict[str, str]:
    """The files that a plan's run wrote for tools, those that are there, and how to carry it out here."""
    found = {
        f"{one.tool}: {file}": folder / file
        for one in plan.solutions
        if one.tool and (file := tool_named(one.tool).FILE)
    }
    carry = f"studfinder quantize {shlex.quote(plan.model.id)} --plan RUN --out OUT"
    texts = {title: path.read_text("utf-8") for title, path in found.items() if path.is_file()}
    return texts | {"studfinder, where RUN is this folder": carry}


def redraw_record(path: Path, out: Path | None = None) -> Path:
    """Draw the tables, figures and page of a finished run again; returns the page.

    Args:
        path: the folder of a plan, a diagnosis, an equivalent or quantised checkpoint or a training, or its record.
        out: where to; the default is its own folder.

    Raises:
        StudfinderError: there is no such record, or `out` cannot be made.
    """
    record, own = read(path), kind_of(path)[1].parent
    if isinstance(record, Plan):
        sheet = plan_sheet(record, read(own, Sensitivity), _pasted(own, record))
    else:
        sheet = _SHEETS[type(record)](record)
    folder = out or own
    with writes_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return write_sheet(folder, sheet, own)


_SHEETS: dict[type, Callable[[Any], Sheet]] = {
    Diagnosis: diagnosis_sheet,
    Equivalence: equivalence_sheet,
    Quantization: quantization_sheet,
    Training: training_sheet,
}

"""What a person reads of an experiment: its tables, figures and page, and those of several runs side by side."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType

from studfinder.experiments.registry import experiment_named
from studfinder.records import Result, RunCard
from studfinder.report.charts import draw_chart
from studfinder.report.claims import claims_table
from studfinder.report.result import Sheet, drawing
from studfinder.report.together import together
from studfinder.runs import now, read, versions
from studfinder.studies.experiment import Experiment
from studfinder.verbs.results import write_sheet


def draw_into(folder: Path, result: Result, module: ModuleType, run: Path | None = None) -> Path:
    """Write the tables, figures and page of a result; returns the page. `run` as of `write_sheet`."""
    entry: Experiment = module.EXPERIMENT
    said = f"{entry.summary} The tables hold the numbers."
    charts = {chart.name: partial(draw_chart, chart) for chart in result.charts}
    if hasattr(module, "draw"):
        parts = result.data.items() if result.models else [("", result.data)]
        for place, (name, data) in enumerate(parts, 1):
            suffix = f"-{place}" if place > 1 else ""
            charts[entry.name.rpartition("/")[2] + suffix] = partial(module.draw, name, data)
    drawn = {name: found for name, draw in charts.items() if (found := drawing(name, draw, said)) is not None}
    lead = f"{entry.summary} ({'ours' if entry.shows == 'ours' else f'arXiv {entry.paper}, {entry.shows}'})"
    sheet = Sheet(
        title=entry.name,
        lead=lead,
        models=result.models,
        run=result.run,
        record=result,
        tables=(*claims_table(result.claims), *result.tables),
        notes=result.notes,
        charts=drawn,
    )
    return write_sheet(folder, sheet, run)


def redraw(folder: Path, out: Path | None = None) -> Path:
    """Draw the tables, figures and page of a finished experiment again."""
    result = read(folder, Result)
    own = folder if folder.is_dir() else folder.parent
    target = out or own
    target.mkdir(parents=True, exist_ok=True)
    return draw_into(target, result, experiment_named(result.name), own)


def redraw_together(runs: Sequence[Path], out: Path | None) -> tuple[Sheet, Path | None]:
    """Several finished runs of experiments as one set of tables; written to `out` as a page too, if that is given."""
    results = [(str(run), read(run, Result)) for run in runs]
    tables, notes = together(results)
    cards = {card.content_hash: card for _, result in results for card in result.models}
    card = RunCard(
        verb="report",
        key="",
        command=shlex.join(["studfinder", "report", *map(str, runs)]),
        started=now(),
        seconds=sum(result.run.seconds for _, result in results),
        device=", ".join(dict.fromkeys(result.run.device for _, result in results)),
        versions=versions(),
    )
    title = ", ".join(dict.fromkeys(result.name for _, result in results))
    lead = f"{len(runs)} runs side by side; the figures are in the report of each."
    sheet = Sheet(title=title, lead=lead, models=list(cards.values()), run=card, tables=tables, notes=notes)
    if out is None:
        return sheet, None
    out.mkdir(parents=True, exist_ok=True)
    return sheet, write_sheet(out, sheet)

"""studfinder report"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from studfinder.cli import options as o
from studfinder.visible import say

EXAMPLES = """Examples:

\b
  studfinder report runs/smollm2/scan-1a2b3c4d5e             draw its page and figures again
  studfinder report runs/a runs/b                            side by side in the terminal
  studfinder report runs/*/scan-* --out compared             all models, and as a page
  studfinder report runs/smollm2/measure-9f8e7d6c5b          a scorecard, an experiment, a training, a quantised model
"""


def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, all of one kind.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the page.  [default: the run's own; none for several]")
    ] = None,
    debug: o.Debug = False,
) -> None:
    """Draw the report of a run again, or set several side by side.

    Scans, scorecards and experiments can be set side by side; trainings, plans, diagnoses, equivalent and quantised
    models are drawn again, each by itself.
    """
    from studfinder.errors import StudfinderError
    from studfinder.runs import kind_of

    kinds = [kind_of(run)[0] for run in runs]
    if len(set(kinds)) > 1:
        named = ", ".join(f"{run} ({kind.rpartition('.')[2]})" for run, kind in zip(runs, kinds, strict=True))
        raise StudfinderError(f"these runs are of different kinds: {named}", expected="runs of one kind")
    if out is not None and out.exists() and not out.is_dir():
        raise StudfinderError(f"--out {out} is a file", expected="a folder, or a name that does not exist yet")
    if kinds[0] not in _DRAWN:
        raise StudfinderError(
            f"{runs[0]} is a recipe", expected="a run", do="studfinder recipe write RECIPE --for TOOL"
        )
    page = _DRAWN[kinds[0]](runs, out)
    if page is not None:
        say(f"report    {page}")


def _scans(runs: list[Path], out: Path | None) -> Path | None:
    from studfinder.report import print_comparison
    from studfinder.verbs.report import names_of, report

    read, page = report(runs, out=out)
    if len(read) > 1:
        print_comparison(names_of(read), [run.findings for run in read])
    return page


def _scorecards(runs: list[Path], out: Path | None) -> Path | None:
    from studfinder.records import Scorecard
    from studfinder.report.cells import print_sheet
    from studfinder.report.scorecard import tables
    from studfinder.runs import read
    from studfinder.verbs.measure import write_cards

    cards = [read(run, Scorecard) for run in runs]
    if len(cards) > 1:
        print_sheet("scorecards", tables(cards), [], None)
    folder = out or (runs[0] if len(runs) == 1 and runs[0].is_dir() else None)
    return None if folder is None else write_cards(folder, cards)


def _experiments(runs: list[Path], out: Path | None) -> Path | None:
    from studfinder.experiments import redraw, redraw_together
    from studfinder.report.cells import print_sheet

    if len(runs) == 1:
        return redraw(runs[0], out)
    sheet, page = redraw_together(runs, out)
    print_sheet(sheet.title, sheet.tables, sheet.notes, None)
    return page


def _record(runs: list[Path], out: Path | None) -> Path | None:
    from studfinder.verbs.results import redraw_record

    return redraw_record(_one(runs), out)


def _one(runs: list[Path]) -> Path:
    from studfinder.errors import StudfinderError

    if len(runs) > 1:
        raise StudfinderError(f"{len(runs)} runs of a kind that is not set side by side", do="Draw each by itself")
    return runs[0]


_DRAWN: dict[str, Callable[[list[Path], Path | None], Path | None]] = {
    "studfinder.findings": _scans,
    "studfinder.scorecard": _scorecards,
    "studfinder.experiment": _experiments,
    **dict.fromkeys(
        (f"studfinder.{kind}" for kind in ("training", "quantization", "plan", "diagnosis", "equivalence")), _record
    ),
}

"""studfinder report"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from studfinder.cli import options as o

EXAMPLES = """Examples:

\b
  studfinder report runs/smollm2/scan-1a2b3c4d5e             draw its page and figures again
  studfinder report runs/a runs/b                            side by side in the terminal
  studfinder report runs/a runs/b --out compared             and as a page
  studfinder report runs/smollm2/measure-9f8e7d6c5b          a scorecard or an experiment works too
"""


def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, all of scans or of one verb.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the page.  [default: the run's own; none for several]")
    ] = None,
    debug: o.Debug = False,
) -> None:
    """Draw the report of a run again, or set several side by side.

    Scans and scorecards can be set side by side; experiments are drawn again, each by itself.
    """
    kind = _kind(runs)
    page = {"scan": _scans, "measure": _scorecards, "experiment": _experiments}[kind](runs, out)
    if page is not None:
        print(f"report    {page}")


def _kind(runs: list[Path]) -> str:
    """Which verb made the runs, by the file that holds their results."""
    from studfinder.errors import StudfinderError

    files = {"scorecard.json": "measure", "result.json": "experiment"}
    kinds = []
    for run in runs:
        names = [name for name in files if (run / name).is_file() or (run.name == name and run.is_file())]
        kinds.append(files[names[0]] if names else "scan")
    if len(set(kinds)) > 1:
        raise StudfinderError(
            "these runs are of different kinds: "
            + ", ".join(f"{run} ({kind})" for run, kind in zip(runs, kinds, strict=True)),
            expected="scans only, scorecards only, or experiments only",
        )
    return kinds[0]


def _scans(runs: list[Path], out: Path | None) -> Path | None:
    from studfinder.report import print_comparison
    from studfinder.verbs.report import names_of, report

    read, page = report(runs, out=out)
    if len(read) > 1:
        print_comparison(names_of(read), [run.findings for run in read])
    return page


def _scorecards(runs: list[Path], out: Path | None) -> Path | None:
    from studfinder.report.cells import print_sheet
    from studfinder.report.scorecard import tables
    from studfinder.verbs.measure import read_card, write_cards

    cards = [read_card(run) for run in runs]
    if len(cards) > 1:
        print_sheet("scorecards", tables(cards), [], None)
    folder = out or (runs[0] if len(runs) == 1 and runs[0].is_dir() else None)
    return None if folder is None else write_cards(folder, cards)


def _experiments(runs: list[Path], out: Path | None) -> Path | None:
    from studfinder.errors import StudfinderError
    from studfinder.experiments import redraw

    if len(runs) > 1:
        raise StudfinderError("several experiments", do="Draw each by itself")
    return redraw(runs[0], out)

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
"""


def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of scans, or their findings.json.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the page.  [default: the run's own; none for several]")
    ] = None,
    debug: o.Debug = False,
) -> None:
    """Draw the report of a scan again, or set several side by side."""
    from studfinder.report import print_comparison
    from studfinder.verbs.report import names_of, report

    read, page = report(runs, out=out)
    if len(read) > 1:
        print_comparison(names_of(read), [run.findings for run in read])
    if page is not None:
        print(f"report    {page}")

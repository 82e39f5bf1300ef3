"""studfinder gallery"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from studfinder.cli import options as o
from studfinder.cli.report import draw_runs
from studfinder.visible import say

EXAMPLES = """Examples:

\b
  studfinder gallery runs --out site                 every finished run below a folder
  studfinder gallery runs/a runs/b --out site        these; open site/index.html
"""


def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders that hold such.")],
    out: Annotated[Path, typer.Option(help="Folder of the site: a new one, or a gallery.")],
    debug: o.Debug = False,
) -> None:
    """Make a site of finished runs: a page each, and an index of the models.

    It opens from a file and loads nothing from elsewhere, so it can be published as it is.
    """
    from studfinder.verbs.gallery import gallery

    index, left = gallery(runs, out, lambda kind, run, folder: draw_runs(kind, [run], folder))
    for line in left:
        say(f"studfinder: note: left out: {line}", file=sys.stderr)
    say(f"gallery   {index}")

"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A built-in name, a folder, a .gguf file or a hub id.")]
Json = Annotated[bool, typer.Option("--json", help="Print the record on stdout and nothing else.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

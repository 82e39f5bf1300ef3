"""A command line read into a config, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from studfinder.cli.faces import face


def parsed(kind: Any, words: Sequence[str]) -> Any:
    """The config that a command line makes."""
    found: list[Any] = []

    @face(kind)
    def command(config: Any) -> None:
        found.append(config)

    app = typer.Typer(add_completion=False)
    app.command()(command)
    app(list(words), standalone_mode=False)
    return found[0]

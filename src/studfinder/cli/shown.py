"""A result that was there already is shown, and said to be so."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from studfinder.visible import say

if TYPE_CHECKING:
    from studfinder.records import RunCard
    from studfinder.runs import Run

_BEGAN = datetime.now(UTC).isoformat(timespec="seconds")
_SAID = ("torch", "transformers", "tokenizers", "numpy")


def say_if_older(run: RunCard) -> None:
    """One line on stderr if this process did not make the result: when it was made, and by which other versions."""
    if not run.started or run.started >= _BEGAN:
        return
    from studfinder.runs import versions

    here = versions()
    other = [f"{name} {run.versions[name]}, now {here[name]}" for name in _SAID if run.versions.get(name) != here[name]]
    made = f"made {run.started[:10]}" + (f" with {'; '.join(other)}" if other else "")
    say(f"studfinder: this is finished ({made}) and is shown again; --overwrite makes it anew", file=sys.stderr)


def place_of(run: Run, overwrite: bool) -> str:
    """Where a dry run's result would go, or that it is there. Raises StudfinderError if it cannot go there."""
    run.check(overwrite)
    found = None if overwrite else run.finished()
    return f"into {run.path}" if found is None else f"it is finished in {found}, and would be shown again"


def say_next(record: Any, folder: Path, most: int = 3) -> None:
    """Print what to run next, by what a record says: commands, the first one first, each with its reason."""
    from studfinder.report.next_steps import next_steps

    for number, step in enumerate(next_steps(record, str(folder))[:most]):
        say(f"{'' if number else 'next':10}{step.command}", f"{'':12}{step.why}")


def gated(failed: Sequence[str]) -> None:
    """Say which conditions of --fail-if hold, and end with 1 if any does."""
    for line in failed:
        say(f"studfinder: failed: {line}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)

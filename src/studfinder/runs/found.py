"""The record in a run's folder, and what kind it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, overload

from studfinder.errors import StudfinderError
from studfinder.records import (
    Diagnosis,
    Equivalence,
    Findings,
    Plan,
    Quantization,
    Recipe,
    Result,
    Scorecard,
    Sensitivity,
    Training,
    read_record,
)
from studfinder.records.json import Record
from studfinder.records.outside import read_json

_FILES: dict[type, str] = {
    Findings: "findings.json",
    Scorecard: "scorecard.json",
    Result: "result.json",
    Training: "result.json",
    Quantization: "studfinder.json",
    Plan: "plan.json",
    Diagnosis: "diagnosis.json",
    Equivalence: "equivalence.json",
    Recipe: "recipe.json",
    Sensitivity: "sensitivity.json",
}
"""The records, and how the file is called that holds one; last those that other runs write beside their own."""

RECORDS: dict[str, type] = {kind.format: kind for kind in _FILES}  # type: ignore[attr-defined]
"""The records by their formats."""


@overload
def read(
    path: str | os.PathLike[str],
) -> (
    Findings | Scorecard | Result | Training | Quantization | Recipe | Plan | Sensitivity | Diagnosis | Equivalence
): ...
@overload
def read(path: str | os.PathLike[str], kind: type[Record]) -> Record: ...
def read(path: str | os.PathLike[str], kind: type | None = None) -> Any:
    """Read what a run wrote: findings, a scorecard, an experiment's result, a training, a quantisation's card,
    a recipe, a plan and the sensitivities it was made from, a diagnosis, an
    equivalent checkpoint.

    Args:
        path: a run folder, or the record itself.
        kind: which record it has to be; the default is whichever is there.

    Raises:
        StudfinderError: there is none, or it is of another kind, or it does not fit its format.
    """
    if not isinstance(path, str | os.PathLike):
        raise StudfinderError(f"cannot read a {type(path).__name__}", expected="the path of a run folder or a record")
    place = Path(path)
    if kind is not None:
        return read_record(kind, record_file(place, _FILES[kind]))
    name, file = kind_of(place)
    return read_record(RECORDS[name], file)


def record_file(path: Path, name: str) -> Path:
    """The file `name` of a run folder, or the file itself. Raises StudfinderError if there is none."""
    found = path / name if path.is_dir() else path
    if not found.is_file():
        raise StudfinderError(_missing(path, name), expected=f"the folder of a finished run, or its {name}")
    return found


def kind_of(path: Path) -> tuple[str, Path]:
    """The format of a run's record, and its file.

    Args:
        path: a run folder, or the record itself.

    Raises:
        StudfinderError: there is no record, or it is of no known format.
    """
    names = list(dict.fromkeys(_FILES.values()))
    files = [path] if path.is_file() else [path / name for name in names]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise StudfinderError(_missing(path, "record"), expected="a run folder with one of " + ", ".join(names))
    found = read_json(file, object)
    kind = found.get("format") if isinstance(found, dict) else None
    if kind is None and file.name == "studfinder.json":  # as version 0.1.0 wrote it
        kind = Quantization.format
    if not isinstance(kind, str) or kind not in RECORDS:
        raise StudfinderError(f"{file} has format {kind!r}", expected="one of " + ", ".join(RECORDS))
    return kind, file


def _missing(path: Path, name: str) -> str:
    unfinished = path.is_dir() and (path / "run.json").is_file()
    partial = path.with_name(f"{path.name}.partial").is_dir()
    return f"{path} holds no {name}" + (" (the run did not finish)" if unfinished or partial else "")

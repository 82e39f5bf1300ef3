"""The record in a run's folder, and what kind it is."""

from __future__ import annotations

from pathlib import Path

from studfinder.errors import StudfinderError
from studfinder.records.outside import read_json

RECORDS = {
    "studfinder.findings": "findings.json",
    "studfinder.scorecard": "scorecard.json",
    "studfinder.experiment": "result.json",
    "studfinder.training": "result.json",
    "studfinder.quantization": "studfinder.json",
}
"""The formats of records, and how the file is called that holds one."""


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
    files = [path] if path.is_file() else [path / name for name in dict.fromkeys(RECORDS.values())]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise StudfinderError(_missing(path, "record"), expected="a run folder with one of " + ", ".join(_names()))
    found = read_json(file, object)
    kind = found.get("format") if isinstance(found, dict) else None
    if kind is None and file.name == "studfinder.json":  # as version 0.1.0 wrote it
        kind = "studfinder.quantization"
    if not isinstance(kind, str) or kind not in RECORDS:
        raise StudfinderError(f"{file} has format {kind!r}", expected="one of " + ", ".join(RECORDS))
    return kind, file


def _names() -> list[str]:
    return list(dict.fromkeys(RECORDS.values()))


def _missing(path: Path, name: str) -> str:
    unfinished = path.is_dir() and (path / "run.json").is_file()
    partial = path.with_name(f"{path.name}.partial").is_dir()
    return f"{path} holds no {name}" + (" (the run did not finish)" if unfinished or partial else "")

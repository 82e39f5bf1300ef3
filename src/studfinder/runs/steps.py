"""The steps of a run that are done, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from studfinder.runs.atomic import writes_to
from studfinder.runs.processes import first_process
from studfinder.visible import visible

Progress = Callable[[str, int, int], Any]
"""Told (what is being done, how many are done, of how many)."""


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody asked for."""


Share = Callable[[], Generator[tuple[str, Any], None, None]]
"""A part of a run's work that waits for no other: gives (step, value) as they come. A value is plain JSON, or the
StudfinderError that stands in its way."""

Put = Callable[[str, Any], None]
"""Told each (step, value) that a share gave."""

Executor = Callable[[Mapping[str, Share], Put], None]
"""Carries out shares, which have names, wherever and in any order; told of no step twice."""


def here(shares: Mapping[str, Share], put: Put) -> None:
    """In this process, one after the other."""
    for share in shares.values():
        with closing(share()) as found:  # whatever happens, what it has changed is taken back now
            for step, value in found:
                put(step, value)


class Steps:
    """Values by name in a file of JSON lines, one appended when each step is done.

    A line carries the run it belongs to, the versions it was computed under, and a checksum. One that does not fit
    (half-written by a killed process, changed, copied from another run, computed under other versions) is left out
    with a warning, and its step is done again. Without a path nothing is written; of several processes one writes.
    `earlier` are the seconds that earlier processes spent on steps that are done. `executor` decides where steps that
    wait for no other are done.

    Args:
        path: the file, or None.
        run: what the steps belong to: a hash of all that determines them.
        under: what they are computed with (`provenance.scored_with()`).
    """

    def __init__(self, path: Path | None, run: str = "", under: str = "") -> None:
        self.path, self.run, self.under = path, run, under
        self.values: dict[str, Any] = {}
        self.executor: Executor = here
        self.earlier, self._since = 0.0, time.monotonic()
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
            if not line.strip():
                continue
            why = self._believed(line)
            if why:
                warnings.warn(visible(f"{path} line {number} {why}: its step is done again"), stacklevel=4)

    def _believed(self, line: bytes) -> str | None:
        """Take a line's value; or say why not."""
        try:
            entry = json.loads(line)
            name, value, run, under = entry["step"], entry["value"], entry["run"], entry["under"]
            seconds = [entry["seconds"]] if "seconds" in entry else []  # older lines lack it
            whole = entry["sum"] == _sum(name, value, run, under, *seconds)
        except (ValueError, KeyError, TypeError, RecursionError):
            return "is damaged"
        if not whole or not isinstance(name, str):
            return "is damaged"
        if run != self.run:
            return "belongs to another run"
        if under != self.under:
            return "was made with other versions"
        self.values[name] = value
        self.earlier += sum(seconds)
        return None

    @property
    def spread(self) -> bool:
        """Whether others do steps that wait for no other."""
        return self.executor is not here

    def has(self, name: str) -> bool:
        """Whether a step is done."""
        return name in self.values

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """The value of a step: from the file if it is there, computed and appended otherwise. Values are plain JSON.

        Raises:
            WriteFailed: the file cannot be written.
        """
        if name not in self.values:
            # As a later run will read it, so that a fresh run and a resumed one see the same.
            value = json.loads(json.dumps(compute()))
            if self.path is not None and first_process():
                seconds, self._since = round(time.monotonic() - self._since, 3), time.monotonic()
                entry = {"step": name, "value": value, "run": self.run, "under": self.under, "seconds": seconds}
                entry["sum"] = _sum(*entry.values())
                self._append(self.path, json.dumps(entry))
            self.values[name] = value
        return self.values[name]

    @staticmethod
    def _append(path: Path, line: str) -> None:
        with writes_to(path), path.open("ab+") as file:
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # what an interrupted write left must not swallow this line
                    file.write(b"\n")
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _sum(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

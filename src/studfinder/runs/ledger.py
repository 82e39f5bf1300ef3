"""The steps of a long run that are done, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from studfinder.errors import StudfinderError
from studfinder.runs.processes import first_process


class Ledger:
    """Values by key in a file of JSON lines, one appended when each step is done.

    A line that cannot be read (a process was killed while writing it, or the file was damaged) is left out with a
    warning, and its step is done again. Without a path nothing is written, and of several processes one writes.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        lines = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                self.values[entry["key"]] = entry["value"]
            except (ValueError, KeyError, TypeError):
                warnings.warn(f"{path} line {number} is damaged: its step is done again", stacklevel=3)

    def once(self, key: str, compute: Callable[[], Any]) -> Any:
        """The value of a step: from the file if it is there, computed and appended otherwise. Values are plain JSON.

        Raises:
            StudfinderError: the file cannot be written.
        """
        if key not in self.values:
            value = compute()
            if self.path is not None and first_process():
                self._append(self.path, json.dumps({"key": key, "value": value}))
            # What a later run will read, so that a fresh run and a resumed one see the same.
            self.values[key] = json.loads(json.dumps(value))
        return self.values[key]

    @staticmethod
    def _append(path: Path, line: str) -> None:
        try:
            with path.open("ab+") as file:
                file.seek(0, os.SEEK_END)
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":  # what an interrupted write left must not swallow this line
                        file.write(b"\n")
                file.write(line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StudfinderError(
                f"{path} cannot be written ({error.strerror or error})", do="Make room, then run the same command again"
            ) from None

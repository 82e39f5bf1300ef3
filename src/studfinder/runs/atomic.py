"""Files that are either the old or the new, never half."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from studfinder.errors import StudfinderError


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically. Raises StudfinderError if the disk is full or the place cannot be written."""
    write_bytes(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it into place.

    Raises:
        StudfinderError: the disk is full or the place cannot be written; what was there before is untouched.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StudfinderError(
            f"{path} cannot be written ({error.strerror or error})", do="Nothing that existed was changed"
        ) from None

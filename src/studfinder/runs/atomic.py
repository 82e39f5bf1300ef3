"""Files that are either the old or the new, never half, and folders that change places in one step."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from studfinder.errors import WriteFailed, known


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically. Raises WriteFailed if the disk is full or the place cannot be written."""
    write_bytes(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it into place.

    Raises:
        WriteFailed: the disk is full or the place cannot be written; what was there before is untouched.
    """
    with writes_to(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.", suffix=TEMPORARY)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


TEMPORARY = ".studfinder-tmp"
"""How the name of a half-written file ends; one that a killed process left is never taken for a result."""


@contextmanager
def writes_to(path: Path) -> Iterator[None]:
    """Around writing at `path`: the system's errors as one line, with the place.

    Raises:
        WriteFailed: instead of OSError.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError):
            why = error.strerror or str(error)
        elif isinstance(known(error), WriteFailed) and not isinstance(error, WriteFailed):  # safetensors', torch's
            why = "the disk is full"
        else:
            raise
        raise WriteFailed(f"{path} cannot be written ({why})", do="Nothing that existed was changed") from error


def exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step; False where the system or the file system has no such call."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if call is None:
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return call(here, os.fsencode(one), here, os.fsencode(other), swap) == 0


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""A checkpoint that cannot be written, in whatever words the library that wrote it says so."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from studfinder.errors import StudfinderError, in_a_line

_FULL = "No space left on device"
_TORCH_WRITER = ("inline_container.cc", "iostream error")
"""What torch.save says of a file that ended up shorter than what was written to it. Not the reason, and no errno."""
_SPENT = 1 << 20
"""Fewer free bytes than this is a full disk."""


@contextmanager
def writing(what: str, place: Path, *, clean: Callable[[], object]) -> Iterator[None]:
    """Around the writing of weights: one clear line if the disk is full, and nothing half-written left.

    Args:
        what, place: what is written, and where to.
        clean: removes what is half-written.

    Raises:
        StudfinderError: it could not be written. Errors of another kind pass as they are.
    """
    try:
        yield
    except StudfinderError:  # a small file of ours beside the weights could not be written
        clean()
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = failed_write(error, place)  # before the cleaning makes room
        if reason is None:
            raise
        clean()
        mend = "Free some space" if reason == _FULL else "Mend that"
        raise StudfinderError(
            f"{what} cannot be written to {place} ({reason})",
            do=f"{mend} and run the same command again: it continues from the last complete checkpoint",
        ) from error


def failed_write(error: Exception, place: Path) -> str | None:
    """Why a file could not be written, if that is what an error means.

    Python says it with an OSError; safetensors with an error of its own that holds the system's words; torch's zip
    writer with a RuntimeError about a file that is too short, where the free space tells what it means.
    """
    said = in_a_line(error)
    if isinstance(error, OSError):
        return error.strerror or said
    if isinstance(error, SafetensorError):
        return _FULL if _FULL in said else said if "I/O error" in said else None
    if any(words in said for words in _TORCH_WRITER):
        return _FULL if _free(place) < _SPENT else said
    return _FULL if _FULL in said else None


def _free(place: Path) -> int:
    there = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free

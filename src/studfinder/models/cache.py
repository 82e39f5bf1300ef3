"""The cache on this disk: where it is, and that nobody but its user can write or read it."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

import platformdirs

from studfinder.errors import StudfinderError

_OTHERS, _OTHERS_WRITE = 0o077, 0o022


def cache_folder() -> Path:
    """Where converted models are kept: STUDFINDER_CACHE, or the user's cache folder."""
    given = os.environ.get("STUDFINDER_CACHE")
    return Path(given) if given else Path(platformdirs.user_cache_dir("studfinder"))


def private_folder(*names: str) -> Path:
    """A folder of the cache, made if it is not there, with the permissions 0700 on it and on the cache itself.

    Raises:
        StudfinderError: others can write to it, and it is not ours to change.
        OSError: it cannot be made.
    """
    place = cache_folder()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    keep_private(place)
    for name in names:
        place = place / name
        place.mkdir(mode=0o700, exist_ok=True)
        keep_private(place)
    return place


def private_text(path: Path, text: str) -> None:
    """Write a small file of the cache atomically, with the permissions 0600."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")  # which has these permissions
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def keep_private(path: Path) -> None:
    """Take the permissions of others from a file or folder of the cache.

    Raises:
        StudfinderError: others can write to it, and it is not ours to change.
    """
    if not hasattr(os, "geteuid"):  # Windows: a user's folders are the user's by inheritance
        return
    found = path.stat()
    if found.st_mode & _OTHERS and os.geteuid() in (0, found.st_uid):
        with suppress(OSError):  # on a read-only file system, where nobody writes
            path.chmod(found.st_mode & 0o700)
        found = path.stat()
    if found.st_uid not in (0, os.geteuid()) and os.geteuid() != 0:
        raise StudfinderError(f"{path} in the cache is another user's", do="Set STUDFINDER_CACHE to a folder of yours")
    if found.st_mode & _OTHERS_WRITE:
        raise StudfinderError(
            f"others can write to {path} in the cache", do="Set STUDFINDER_CACHE to a folder that is yours alone"
        )

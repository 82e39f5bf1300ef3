"""Names from outside: the plain name of a file in a folder, and never a path.

An index, a config, an adapter or a folder of files comes from a stranger. Nothing that it names is read outside of the
model's folder, and nothing that is written for it lands outside of the folder it is written to. Links count as what
they lead to. The one exception is the hub's cache, which keeps a snapshot as links into its stores of blobs.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from tempfile import TemporaryDirectory
from typing import Any

from studfinder.errors import StudfinderError

LONGEST = 255
"""Bytes of a file's name that every usual file system takes."""
_TEMPLATES = "additional_chat_templates"
_LINKED: dict[Path, Path] = {}
"""Folders of links that were made here, and of what."""


def plain_name(name: Any, where: object) -> str:
    """The name, if it can only mean one file in a folder: no separators, drives, control characters, "." or "..".

    Args:
        where: what names it, for print.

    Raises:
        StudfinderError: it is a path, or no name at all.
    """
    if not isinstance(name, str) or not _is_plain(name):
        raise StudfinderError(
            f"{where} names a file {_shown(name)}",
            expected="the plain name of a file beside it",
            do="Do not use these files if you do not know who wrote that; else rename the file",
        )
    return name


def _is_plain(name: str) -> bool:
    if PurePosixPath(name).name != name or PureWindowsPath(name).name != name or ":" in name:
        return False
    if name in ("", ".", "..") or any(unicodedata.category(sign) in ("Cc", "Cs") for sign in name):
        return False
    return len(name.encode()) <= LONGEST


def check_distinct(names: Iterable[str], where: object) -> None:
    """Raise StudfinderError if two names are one file where case, or the way an accent is written, does not count."""
    seen: dict[str, str] = {}
    for name in sorted(set(names)):
        folded = unicodedata.normalize("NFC", name.casefold())
        if folded in seen:
            raise StudfinderError(
                f"{where} names both {_shown(seen[folded])} and {_shown(name)}, which many file systems hold for one",
                expected="names that differ in more than case",
                do="Rename one of the two",
            )
        seen[folded] = name


def inside(folder: Path, name: str, where: object | None = None) -> Path:
    """The path of a file in a folder, to read it; parts of the name may be separated by "/".

    Args:
        where: what names it; the folder itself if it was found there.

    Raises:
        StudfinderError: the name leads out of the folder, or a link there does.
    """
    for part in name.split("/"):
        plain_name(part, where or folder)
    path = folder / name
    if not leads_in(folder, path):
        raise StudfinderError(
            f"{path} is a link that leads out of its folder",
            expected="files of the model's own folder, or of the hub's cache",
            do="Copy the file there in place of the link if you know who made it",
        )
    return path


def leads_in(folder: Path, path: Path) -> bool:
    """Whether a path is, all links followed, in this folder, or where the hub's cache keeps the folder's files."""
    try:
        root, target = folder.resolve(), path.resolve()
    except (OSError, RuntimeError, ValueError):  # a circle of links; a name that is too long
        return False
    root = _LINKED.get(root, root)
    if target.is_relative_to(root):
        return True
    for place in (root, *root.parents):
        repository = place.parent.parent
        if place.parent.name == "snapshots" and repository.name.startswith("models--"):
            shared = repository.parent / "blobs"
            below = target.relative_to(shared).as_posix() if target.is_relative_to(shared) else ""
            return target.is_relative_to(repository / "blobs") or bool(re.fullmatch(r"[0-9a-f]{2}/[0-9a-f]{64}", below))
    return False


def check_links(folder: Path) -> None:
    """Raise StudfinderError if a file of a model's folder is a link that leads out of it, as far as its files are ever
    read: folders in it are not, but for that of chat templates."""
    templates = folder / _TEMPLATES
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and (path == templates or not path.is_dir()):
            inside(folder, path.name)
    if templates.is_dir():
        for path in sorted(templates.iterdir()):
            inside(folder, f"{_TEMPLATES}/{path.name}")


def outward(folder: Path, name: str, where: object) -> Path:
    """Where a file of this name is written in a folder; parts of the name may be separated by "/". Makes its folders.

    Raises:
        StudfinderError: that is outside of the folder, or a link is in the way.
    """
    for part in name.split("/"):
        plain_name(part, where)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or not path.parent.resolve().is_relative_to(folder.resolve()):
        raise StudfinderError(f"{path} is a link, and nothing is written through it", do="Choose another --out")
    return path


@contextmanager
def linked(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    """A folder for a while that holds links to some files of another one, which were checked."""
    with TemporaryDirectory(prefix="studfinder-") as temporary:
        made = Path(temporary).resolve()
        _LINKED[made] = folder.resolve()
        try:
            for name in names:
                (made / name).symlink_to(inside(folder, name).resolve())
            yield made
        finally:
            del _LINKED[made]


def _shown(name: Any) -> str:
    said = ascii(name) if isinstance(name, str | bytes) else f"that is a {type(name).__name__}"
    return said if len(said) <= 80 else f"{said[:60]}... ({len(os.fspath(name)):,} characters)"

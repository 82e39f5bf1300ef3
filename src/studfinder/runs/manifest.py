"""Whose folder it is: the manifest of a run, and what may be removed by it.

A name says nothing about who made a folder. Its `run.json` does: it holds the list of the run's files, and only what is
listed is ever removed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from studfinder.runs.atomic import TEMPORARY, write_text, writes_to
from studfinder.runs.earlier import earlier_files

MANIFEST = "run.json"
FORMAT = "studfinder.run"
_DRAWN = re.compile(r"figure-[^/]*\.(png|svg)|table[^/]*\.csv|card\.png")


def listing(folder: Path) -> list[str]:
    """Every file below a folder, as the manifest lists it: without itself, and without what is half-written."""
    found = (Path(top, name).relative_to(folder) for top, _, names in os.walk(folder) for name in names)
    return sorted(path.as_posix() for path in found if path != Path(MANIFEST) and path.suffix != TEMPORARY)


def strays(folder: Path) -> list[str]:
    """Files in a run's folder that the run did not write."""
    manifest = manifest_of(folder)
    if manifest is None:
        return sorted(set(listing(folder)) - set(earlier_files(folder)))
    return sorted(set(listing(folder)) - set(manifest["files"])) if manifest["state"] != "working" else []


def drawn(folder: Path, names: Collection[str]) -> None:
    """Note in a finished run's folder that its page was drawn again.

    Tables and figures of the run that were not drawn this time are removed; in a folder that is no run, nothing is.

    Args:
        names: the files that were written now.
    """
    manifest = manifest_of(folder)
    if manifest is None or manifest["state"] != "done":
        return
    old = [name for name in manifest["files"] if _DRAWN.fullmatch(name) and name not in names]
    for name in old:
        (folder / name).unlink(missing_ok=True)
    files = sorted({*manifest["files"], *names} - set(old))
    write_text(folder / MANIFEST, json.dumps({**manifest, "files": files}, indent=1))


def remove(folder: Path) -> None:
    """Remove a run's own files, and the folder if nothing else is in it. Its manifest goes last, so that a removal that
    was killed can be gone on with."""
    manifest = manifest_of(folder)
    if manifest is not None and manifest["state"] == "working":
        names = listing(folder)
    else:
        names = list(manifest["files"]) if manifest is not None else earlier_files(folder)
    with writes_to(folder):
        remove_temporary(folder)
        for name in names:
            (folder / name).unlink(missing_ok=True)
        for top, folders, _ in os.walk(folder, topdown=False):
            for name in folders:
                place = Path(top, name)
                if not place.is_symlink() and not any(place.iterdir()):
                    place.rmdir()
        if [child.name for child in folder.iterdir()] == [MANIFEST]:
            (folder / MANIFEST).unlink()
        if not any(folder.iterdir()):
            folder.rmdir()


def manifest_of(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder that is ours, or None. Names that lead out of the folder make it nobody's."""
    found = read_plain(folder / MANIFEST)
    files = found.get("files", [])
    ours = found.get("format") == FORMAT and found.get("state") in ("working", "done") and isinstance(files, list)
    if not ours or not all(isinstance(name, str) and _inside(folder, name) for name in files):
        return None
    return {**found, "files": files}


def _inside(folder: Path, name: str) -> bool:
    """Whether a file that a manifest lists is below its folder; no run makes links, so one on the way leads out."""
    path = Path(name)
    if not name or "\0" in name or path.is_absolute() or ".." in path.parts:
        return False
    return not any((folder / above).is_symlink() for above in path.parents if above != Path())


def read_plain(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def remove_temporary(folder: Path) -> None:
    """What a killed process left half-written."""
    for top, _, names in os.walk(folder):
        for name in names:
            if name.endswith(TEMPORARY):
                Path(top, name).unlink(missing_ok=True)

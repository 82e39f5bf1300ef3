"""A folder that was made here, held against what was made: a list of its files with their SHA-256."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from studfinder.errors import StudfinderError
from studfinder.models.cache import keep_private, private_text
from studfinder.models.fingerprint import file_hash
from studfinder.models.headers import read_header

LIST = "studfinder-files.json"
_SEEN: dict[Path, list] = {}
"""In this process: the sizes, times and inodes of folders that were read whole."""


def note_made(folder: Path, source: str) -> None:
    """Write the list of a folder's files, and take the permissions of others from them.

    Args:
        source: SHA-256 of what they were made from.
    """
    for path in folder.rglob("*"):
        keep_private(path)
    private_text(folder / LIST, json.dumps({"source": source, "files": _hashes(folder)}, indent=1))


def check_as_made(folder: Path, name: str, source: str, weights: str) -> None:
    """Hold a folder against its list. One of an earlier version has none: of it the weights are held against a hash
    that is known beforehand, and what lies beside them is listed from then on.

    Args:
        name: of the model, for print.
        source: SHA-256 of what it was made from.
        weights: `weights_hash` of what is made.

    Raises:
        StudfinderError: a file is other, missing or new, or others can write to one.
    """
    stamps = [[path.as_posix(), *_stamp(path)] for path in _files(folder)]
    if _SEEN.get(folder) == stamps:
        return
    wrong = next((f"{path.name} is a link" for path in folder.rglob("*") if path.is_symlink()), None)
    if wrong is None:
        for path in (folder, *_files(folder)):
            keep_private(path)
        if not (folder / LIST).is_file() and weights_hash(folder / "model.safetensors") == weights:
            note_made(folder, source)
        wrong = _difference(folder, source)
    if wrong is not None:
        raise StudfinderError(
            f"the model {name} in {folder} is not as it was made ({wrong})",
            expected="the files that were converted there",
            do="Remove that folder: the model is then fetched and converted anew",
        )
    _SEEN[folder] = [[path.as_posix(), *_stamp(path)] for path in _files(folder)]


def weights_hash(path: Path) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of a safetensors file's tensors, in name order."""
    whole = hashlib.sha256()
    with path.open("rb") as file:
        for name, stored in sorted(read_header(path).items()):
            whole.update(f"{name}|{stored.dtype}|{stored.shape}|".encode())
            file.seek(stored.begin)
            whole.update(file.read(stored.end - stored.begin))
    return whole.hexdigest()


def _difference(folder: Path, source: str) -> str | None:
    try:
        noted = json.loads((folder / LIST).read_text(encoding="utf-8"))
        known, files = noted["source"], dict(noted["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return f"{LIST} is missing or damaged"
    if known != source:
        return "it was made from another file"
    found = _hashes(folder)
    return next((name for name in sorted({*map(str, files), *found}) if files.get(name) != found.get(name)), None)


def _files(folder: Path) -> list[Path]:
    """Hidden ones are never read, and a desktop may put some there."""
    return sorted(path for path in folder.rglob("*") if not path.name.startswith(".") and not path.is_dir())


def _hashes(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): file_hash(path) for path in _files(folder) if path.name != LIST}


def _stamp(path: Path) -> tuple[int, ...]:
    found = path.lstat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_mode

"""Texts by name or path, and the one rule for what a document of them is. Where a text came from is always said."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path

from studfinder.errors import StudfinderError, Unavailable, in_a_line
from studfinder.hub import hub_failure
from studfinder.records.outside import json_lines, read_json, read_text
from studfinder.texts.pinned import commit_of, said, split_revision

_LOCAL = {"wikitext2": "wikitext2/wiki.test.raw", "c4": "calibration/c4.txt", "wikipedia": "calibration/wikipedia.txt"}
CORPORA = tuple(_LOCAL)
"""The texts that have a name."""
_SAMPLES = ("c4", "wikipedia")
"""Those of which a folder holds a part."""
ONE_DOCUMENT = "A plain file is one document; .jsonl holds several"
"""Said where several are needed."""
_HUB = {
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1", "test"),
    "c4": ("allenai/c4", "en", "validation"),
    "wikipedia": ("wikimedia/wikipedia", "20231101.en", "train"),
}
_MOST = 5000
"""Documents of the hub that are fetched where a text is held whole, and of a text that has a name."""
_SUFFIXES = (".txt", ".raw", ".md", ".json", ".jsonl")


def corpus(name: str | Path) -> tuple[str, list[str]]:
    """As `documents`, held whole: of a data set of the hub the first 5,000."""
    source, found = documents(name, most=_MOST)
    return source, list(found)


def documents(name: str | Path, *, most: int | None = None) -> tuple[str, Iterator[str]]:
    """A text by name or path: its name with where it came from, and its documents one after the other.

    A text is the first of these that there is:

    * "wikitext2" (its whole test split), "c4" or "wikipedia": a document a line, from the folder STUDFINDER_DATA (of
      the last two a sample, and called so), else the first 5,000 of the hub. A file of such a name is "./c4".
    * a file, or a folder and all its files; the same below STUDFINDER_DATA. An entry of .jsonl (its "text") or of .json
      (a list of texts) is a document; any other file is one document.
    * a data set of the hub, "owner/name" or "owner/name:config": the "text" of each row of its split "train".

    What is of the hub can be pinned to a branch, tag or commit: "wikitext2@REVISION", "owner/name:config@REVISION". The
    commit that is read is part of the name that is given back. Blank documents are left out. "A + B" is two texts, one
    after the other.

    Args:
        most: of a data set of the hub, at most so many.

    Raises:
        StudfinderError: it is in none of these places (there is no silent substitute); while documents are read: it
            cannot be, or holds none.
    """
    if len(parts := texts_in(name)) > 1:
        texts = [documents(part, most=most) for part in parts]
        return " + ".join(called for called, _ in texts), chain.from_iterable(found for _, found in texts)
    if (found := _here(name)) is not None:
        called, path = found
        if not path.is_dir():
            return called, _checked(name, _lines(path) if str(name) in _LOCAL else _documents_of(path))
        files = sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES)
        read = chain.from_iterable(map(_documents_of, files))
        return f"{called}, {len(files):,} file{'s' * (len(files) != 1)}", _checked(name, read)
    key = str(name).partition("@")[0]
    if key not in _HUB and not (re.fullmatch(r"\w[\w.-]*/[\w.-]+(:.+)?", key) and not key.endswith(_SUFFIXES)):
        raise StudfinderError(
            f"there is no text {str(name)!r}",
            expected="a file, a folder, a name below STUDFINDER_DATA, a data set of the hub (owner/name), or "
            + ", ".join(CORPORA),
        )
    _, revision = split_revision(str(name))
    repository, _, config = key.partition(":")
    repository, config, split = _HUB.get(key, (repository, config, "train"))
    commit = commit_of(repository, revision) if find_spec("datasets") is not None else None
    rows = _hub(key, (repository, config, split), commit or revision, _MOST if key in _HUB else most)
    return f"{key} (hub{said(commit, revision)})", _checked(name, rows)


def texts_in(name: str | Path) -> list[str]:
    """The texts that a name joins with " + "."""
    return [str(name)] if _here(name) is not None else str(name).split(" + ")


def fingerprint(name: str | Path) -> str:
    """A short hash of a local text's size and beginning, or its name: whether it is still the same text."""
    digest = hashlib.sha256(str(name).encode())
    if len(parts := texts_in(name)) > 1:
        digest.update("".join(map(fingerprint, parts)).encode())
    if (found := _here(name)) is not None:
        path = found[1]
        for file in sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]:
            digest.update(str(file.stat().st_size).encode())
            with file.open("rb") as content:
                digest.update(content.read(1 << 20))
    return digest.hexdigest()[:10]


def _here(name: str | Path) -> tuple[str, Path] | None:
    """What a text on this machine is called, and its file or folder; None if it is not here."""
    data, (key, at, _) = os.environ.get("STUDFINDER_DATA"), str(name).partition("@")
    if key in _LOCAL:
        path = Path(data or "", _LOCAL[key])
        called = f"{key}{' sample' * (key in _SAMPLES)} (STUDFINDER_DATA)"
        return (called, path) if data and not at and path.is_file() else None
    own = os.path.expanduser(name)
    if os.path.lexists(own):
        return os.path.basename(os.path.abspath(own)), Path(own)
    if data and str(name) and os.path.lexists(os.path.join(data, name)):
        return f"{name} (STUDFINDER_DATA)", Path(data, name)
    return None


def _checked(name: str | Path, found: Iterator[str]) -> Iterator[str]:
    some = False
    for document in found:
        if document.strip():
            some = True
            yield document
    if not some:
        raise StudfinderError(f"text {str(name)!r} is empty", expected="some text")


def _lines(path: Path) -> Iterator[str]:
    # WikiExtractor puts each article between marks of its own.
    return (line for line in read_text(path, name="text").split("\n") if not line.startswith(("<doc ", "</doc>")))


def _documents_of(path: Path) -> Iterator[str]:
    if path.suffix == ".jsonl":
        for number, row in json_lines(path, name="text"):
            yield _text(row.get("text"), path, f"line {number}")
    elif path.suffix == ".json":
        for number, entry in enumerate(read_json(path, list), 1):
            found = entry.get("text", entry.get("story")) if isinstance(entry, dict) else entry
            yield _text(found, path, f"entry {number}")
    else:
        yield read_text(path, name="text")


def _text(found: object, path: Path, place: str) -> str:
    if not isinstance(found, str):
        raise StudfinderError(
            f"text {path} cannot be read ({place} has no text)",
            expected='.jsonl with "text" in each line, or .json with a list of texts',
        )
    return found


def _hub(key: str, place: tuple[str, str, str], revision: str | None, most: int | None) -> Iterator[str]:
    """The texts of a split of a data set, at most so many rows."""
    try:
        from datasets import load_dataset  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise Unavailable(
            f"text {key!r} is not here, and the hub needs the package datasets",
            do='pip install "studfinder[evaluate]", set STUDFINDER_DATA to a folder that holds it, or name a file or a '
            "folder",
        ) from None
    repository, config, split = place
    try:
        with _no_word_of_retries():
            stream = key != "wikitext2"
            rows = iter(load_dataset(repository, config or None, split=split, streaming=stream, revision=revision))
            first = list(islice(rows, most or 1))
        for row in chain(first, rows if most is None else ()):
            yield str(row["text"])
    except Exception as error:
        if (failed := hub_failure(repository, error, revision)) is not None:
            raise type(failed)(f"text {key!r}: {failed.what}", expected=failed.expected, do=failed.do) from error
        raise Unavailable(
            f"text {key!r} cannot be fetched ({in_a_line(error)})",
            expected=f'a data set with a split "{split}" and a column "text"',
            do="Where there is no network, set STUDFINDER_DATA to a folder that holds it",
        ) from None


@contextmanager
def _no_word_of_retries() -> Iterator[None]:
    """The hub's client warns of each of its five tries; what became of them is said once, by us."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

"""Text to train on: the documents of a text by its name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from studfinder.errors import StudfinderError, in_a_line
from studfinder.records.outside import irregular, read_json
from studfinder.texts import CORPORA, corpus, split_revision

_SUFFIXES = (".txt", ".raw", ".md", ".json", ".jsonl")


def documents(name: str) -> Iterator[str]:
    """The documents of a text by name.

    In this order: a file or a folder of files (.jsonl: one document a line under "text"; .json: a list; anything else
    is one document); the same below STUDFINDER_DATA; a text that `texts.corpus` knows ("wikipedia", "c4", "wikitext2":
    a test split); a data set of the hub, "owner/name" or "owner/name:config", whose split "train" is streamed. What is
    of the hub can be pinned to a branch, tag or commit: "owner/name:config@REVISION".

    Raises:
        StudfinderError: it is in none of these places, or holds no text.
    """
    data = os.environ.get("STUDFINDER_DATA")
    places = [Path(name).expanduser()] + ([Path(data) / name] if data else [])
    path = next((place for place in places if place.exists() or place.is_symlink()), None)
    if path is not None:
        return _checked(name, _files(path))
    if "/" in name and not name.startswith((".", "/", "~")) and not name.endswith(_SUFFIXES):
        return _checked(name, _hub(name))
    if split_revision(name)[0] not in CORPORA:
        raise StudfinderError(
            f"there is no text {name!r}",
            expected="a file, a folder, a name below STUDFINDER_DATA, a data set of the hub (owner/name), or "
            + ", ".join(CORPORA),
        )
    return _checked(name, iter(corpus(name)[1]))


def _checked(name: str, found: Iterator[str]) -> Iterator[str]:
    some = False
    for document in found:
        if document.strip():
            some = True
            yield document
    if not some:
        raise StudfinderError(f"text {name!r} is empty", expected="some text to train on")


def _files(path: Path) -> Iterator[str]:
    files = sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES) if path.is_dir() else [path]
    for file in files:
        if (kind := irregular(file)) is not None:
            raise StudfinderError(f"text {file} cannot be read: it is {kind}", expected="a file")
        try:
            yield from _documents_of(file)
        except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise StudfinderError(
                f"text {file} cannot be read ({type(error).__name__}: {error})",
                expected='UTF-8; .jsonl with "text" in each line; .json with a list of texts',
            ) from None


def _documents_of(file: Path) -> Iterator[str]:
    if file.suffix == ".jsonl":
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                if line.strip():
                    yield _text(json.loads(line)["text"])
    elif file.suffix == ".json":
        for entry in read_json(file, list):
            yield _text(entry if isinstance(entry, str) else entry["text"] if "text" in entry else entry["story"])
    else:
        yield file.read_text("utf-8")


def _text(found: object) -> str:
    if not isinstance(found, str):
        raise TypeError(f"{str(found)[:40]} is no text")
    return found


def _hub(name: str) -> Iterator[str]:
    try:
        from datasets import load_dataset  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise StudfinderError(
            f"text {name!r} is not here, and the hub needs the package datasets",
            do='pip install "studfinder[evaluate]", or name a file or a folder',
        ) from None
    name, revision = split_revision(name)
    repository, _, config = name.partition(":")
    try:
        rows = load_dataset(repository, config or None, split="train", streaming=True, revision=revision)
        for row in rows:
            yield str(row["text"])
    except Exception as error:
        raise StudfinderError(
            f"text {name!r} cannot be fetched ({in_a_line(error)})",
            expected='a data set with a split "train" and a column "text"',
        ) from None


def fingerprint(name: str | None) -> str:
    """A short hash of a local text's size and beginning, or its name: whether it is still the same text."""
    digest = hashlib.sha256(str(name).encode())
    data = os.environ.get("STUDFINDER_DATA")
    places = [Path(str(name)).expanduser()] + ([Path(data) / str(name)] if data else [])
    path = next((place for place in places if place.exists()), None)
    if path is not None:
        for file in sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]:
            digest.update(str(file.stat().st_size).encode())
            with file.open("rb") as content:
                digest.update(content.read(1 << 20))
    return digest.hexdigest()[:10]

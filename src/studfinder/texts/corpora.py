"""Evaluation texts: from STUDFINDER_DATA, from a file, or from the hub by name. The source is always said."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from studfinder.errors import StudfinderError, Unavailable, in_a_line
from studfinder.hub import hub_failure
from studfinder.records.outside import irregular, json_lines, read_text
from studfinder.texts.pinned import commit_of, said, split_revision

_LOCAL = {"wikitext2": "wikitext2/wiki.test.raw", "c4": "calibration/c4.txt", "wikipedia": "calibration/wikipedia.txt"}
CORPORA = tuple(_LOCAL)
"""The texts that have a name."""
_HUB = {
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1", "test"),
    "c4": ("allenai/c4", "en", "validation"),
    "wikipedia": ("wikimedia/wikipedia", "20231101.en", "train"),
}
_LONG = ("c4", "wikipedia")
"""Of these only the first 5,000 documents are fetched."""


def corpus(name: str | Path) -> tuple[str, list[str]]:
    """A text by name or path: its name with where it came from, and its documents.

    Names are looked up in the folder STUDFINDER_DATA, then on the Hugging Face hub; "wikitext2@REVISION" is the hub's
    at that branch, tag or commit. The commit that was read is part of the name that is given back.

    Raises:
        StudfinderError: it is in none of these places; there is no silent substitute.
    """
    path = Path(name)
    if path.is_file() or (not path.is_dir() and irregular(path) is not None):
        return _file(path)
    key, revision = split_revision(str(name))
    if key not in _LOCAL:
        raise StudfinderError(f"there is no text {key!r}", expected="proof, " + ", ".join(_LOCAL) + ", or a file")
    folder = os.environ.get("STUDFINDER_DATA")
    local = Path(folder) / _LOCAL[key] if folder and revision is None else None
    if local is not None and local.is_file():
        # WikiExtractor puts each article between marks of its own.
        documents = [line for line in _file(local)[1] if not line.startswith(("<doc ", "</doc>"))]
        return f"{key} (STUDFINDER_DATA)", documents
    commit = commit_of(_HUB[key][0], revision) if find_spec("datasets") is not None else None
    return f"{key} (hub{said(commit, revision)})", _hub(key, commit or revision)


def _file(path: Path) -> tuple[str, list[str]]:
    if path.suffix == ".jsonl":
        documents = []
        for number, row in json_lines(path, name="text"):
            if not isinstance(row.get("text"), str):
                raise StudfinderError(f"text {path} cannot be read (line {number} has no text)")
            documents.append(row["text"])
    else:
        # Corpora keep a document or paragraph a line; GPTQ joins those lines by blank ones.
        documents = [line for line in read_text(path, name="text").split("\n") if line.strip()]
    if not documents:
        raise StudfinderError(f"text {path} is empty", expected="some text")
    return path.name, documents


def _hub(key: str, revision: str | None) -> list[str]:
    advice = "Set STUDFINDER_DATA to a folder that holds it, or pip install datasets where there is network"
    try:
        from datasets import load_dataset  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise Unavailable(f"text {key!r} is not here", do=advice) from None
    repository, config, split = _HUB[key]
    try:
        with _no_word_of_retries():
            rows = load_dataset(repository, config, split=split, streaming=key in _LONG, revision=revision)
            texts = (row["text"] for row in rows)
            found = [text for text, _ in zip(texts, range(5000), strict=False)] if key in _LONG else list(texts)
    except Exception as error:
        if (failed := hub_failure(repository, error)) is not None:
            raise type(failed)(f"text {key!r}: {failed.what}", expected=failed.expected, do=failed.do) from error
        raise Unavailable(f"text {key!r} cannot be fetched ({in_a_line(error)})", do=advice) from None
    return [text for text in found if text.strip()]


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

"""What people own and type: documents of another type, files that are no files, numbers that are none."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

DEEP = 100_000

DOCUMENTS: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \n ",
    "list": b"[]",
    "list of lists": b"[[]]",
    "list of objects": b"[{}]",
    "number": b"1",
    "fraction": b"-1.5e-7",
    "text": b'"x"',
    "null": b"null",
    "true": b"true",
    "object": b"{}",
    "another object": b'{"a": {"b": [1, null]}}',
    "cut off": b'{"format": "stud',
    "two": b"{}{}",
    "not a number": b"NaN",
    "infinity": b'{"format": Infinity, "version": -Infinity}',
    "long number": b"1" * 5000,
    "deep list": b"[" * DEEP,
    "deep object": b'{"a":' * DEEP,
    "deep and closed": b"[" * DEEP + b"]" * DEEP,
    "deep within": b'{"format": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "latin-1": b'{"a": "\xe9"}',
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "a mark": b"\xef\xbb\xbf[]",
    "a lone surrogate": b'{"format": "\\ud800", "text": 1}',
    "bytes": bytes(range(256)),
    "zeros": bytes(4096),
}
"""JSON of another type, or none."""

NUMBERS = (
    "²",
    "³²",
    "½",
    "Ⅷ",
    "٣²",
    "①",
    "-1",
    "+",
    "",
    " ",
    "1.5",
    "1e3",
    "x",
    "0x10",
    "nan",
    "inf",
    "9" * 5000,
    "1_",
    "--",
    "𝟘²",
)
"""None of them is a number of things, though str.isdigit, int or float take some."""


def pipe(path: Path) -> None:
    os.mkfifo(path)


def dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def loop(path: Path) -> None:
    path.symlink_to(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path may have a hundred letters
        try:
            one.bind(path.name)
        finally:
            os.chdir(here)


IRREGULAR = {"pipe": pipe, "dangling": dangling, "loop": loop, "device": device, "folder": folder, "socket": listening}
"""What may stand where a file should: reading some never ends."""


def put(kind: str, path: Path) -> None:
    """Put one of IRREGULAR there, in the place of what is there."""
    path.unlink(missing_ok=True)
    IRREGULAR[kind](path)


def quick_and_deep(table: Iterable[Any], *quick: Any) -> list[Any]:
    """A table of cases for `parametrize`: those named here are tried by `make test`, all of them by `make deep`."""
    return [one if one in quick else pytest.param(one, marks=pytest.mark.deep) for one in table]

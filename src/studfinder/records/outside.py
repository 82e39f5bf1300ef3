"""Texts, JSON and numbers that come from outside: each is read in one place, with its checks."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from studfinder.errors import StudfinderError

_KINDS: dict[type, str] = {dict: "an object", list: "a list"}
_HALF = "\\ud"
_IRREGULAR = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def irregular(path: Path) -> str | None:
    """Why a path is no file that can be read to its end: "a pipe" (opening one waits for ever), "a device", "a folder",
    "a link to nothing"; None for files and for what is not there."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except OSError:
        try:
            return "a link to nothing" if path.is_symlink() else None
        except OSError:  # a name that is too long
            return None
    return _IRREGULAR.get(kind)


def read_text(path: Path, *, name: str = "") -> str:
    """A UTF-8 file as text.

    Args:
        name: what to call it in an error, in front of its path, e.g. "prompts file".

    Raises:
        StudfinderError: it is not there, no file, not readable, or not UTF-8.
    """
    called = f"{name} {path}".strip()
    if (kind := irregular(path)) is not None:
        raise StudfinderError(f"{called} cannot be read: it is {kind}", expected="a file")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise StudfinderError(f"{called} cannot be read: it is not UTF-8 (byte {error.start:,})") from None
    except OSError as error:
        raise StudfinderError(f"{called} cannot be read ({error.strerror or error})") from None


def read_json(path: Path, kind: type | tuple[type, ...] = dict) -> Any:
    """What a JSON file holds.

    Raises:
        StudfinderError: as `read_text` and `parse_json`.
    """
    text = read_text(path).removeprefix("\ufeff")  # some editors begin a file with a mark of its encoding
    return parse_json(text, kind, name=str(path))


def parse_json(text: str | bytes, kind: type | tuple[type, ...] = dict, *, name: str) -> Any:
    """The value of a JSON text.

    Args:
        kind: the type that it must have; `object` takes any.
        name: what to call the text in an error.

    Raises:
        StudfinderError: it is not JSON, nested too deeply to be read, or of another type.
    """
    try:
        value = json.loads(text)
        if _HALF in (text if isinstance(text, str) else text.decode("latin-1")).lower():
            json.dumps(value, ensure_ascii=False).encode()  # half a character could not be written down again
    except (ValueError, RecursionError) as error:
        raise StudfinderError(
            f"{name} is not valid JSON ({_why(error)})", do="It may be truncated: download or make it again"
        ) from None
    if not isinstance(value, kind):
        _of_another_type(name, value, kind)
    return value


def json_lines(path: Path, *, name: str = "") -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines with the numbers of their lines; empty lines are passed over.

    Raises:
        StudfinderError: as `read_text`; or a line is not a JSON object, with its number.
    """
    if irregular(path) is None:
        with suppress(OSError, UnicodeDecodeError), path.open(encoding="utf-8") as lines:  # it may be a large text
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, parse_json(line, name=f"{path} line {number}")
            return
    read_text(path, name=name)  # says what is wrong with it


def whole_number(text: object) -> int | None:
    """The number that digits say; None for anything else: signs, "²", or more digits than a number here can have."""
    digits = str(text).strip(" \t\r\n")  # plain strip() also takes separators that int refuses
    return int(digits) if digits.isdecimal() and len(digits) <= 18 else None


def _why(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        return "it holds half a character, a lone surrogate"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error).splitlines()[0][:200]


def _of_another_type(name: str, value: Any, kind: type | tuple[type, ...]) -> NoReturn:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    found: dict[type, str] = {bool: "true or false", type(None): "null", str: "a text", int: "a number"}
    raise StudfinderError(
        f"{name} holds {found.get(type(value)) or _KINDS.get(type(value), 'a number')}",
        expected=" or ".join(_KINDS.get(one, one.__name__) for one in kinds) + " in JSON",
    )

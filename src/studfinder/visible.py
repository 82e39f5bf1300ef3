"""Text from outside, made visible before it is printed, and the two ways in which a line reaches the terminal; spans of
time in words.

A model's name, a token, a path or a library's message may hold ESC sequences that recolour or retitle a terminal, a
carriage return or a line break that forges a line of ours, controls that turn the reading direction, and characters
that cannot be seen. All of them are shown as Python would write them: \\x1b, \\n, \\u202e.
"""

from __future__ import annotations

import json
import re
import sys
from typing import TextIO

# Letters and marks by their Unicode category, and yet nothing is seen of them.
_UNSEEN = "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef"
_HIDDEN = re.compile(r"[^\x20-\x7e]")  # looked at one by one
_ALWAYS = re.compile(f"[{_UNSEEN}]")
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def visible(text: object, *, keep: str = "") -> str:
    """The text with everything that cannot be seen, or that moves what is seen, as an escape; once is enough.

    Control characters (C0, DEL, C1), bidirectional controls, zero-width characters, separators and spaces other than
    the plain one, lone surrogates, private and unassigned characters.

    Args:
        text: its `str` is taken.
        keep: characters that stay, e.g. line breaks in a text of several lines.
    """
    return _HIDDEN.sub(lambda found: _shown(found[0], keep), str(text))


def _shown(character: str, keep: str) -> str:
    if character in keep or (character.isprintable() and not _ALWAYS.match(character)):
        return character
    if character in _NAMED:
        return _NAMED[character]
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def say(*lines: object, file: TextIO | None = None) -> None:
    """Print lines on stdout, or `file`; each stays one line, whatever it holds."""
    for line in lines:
        print(visible(line), file=file or sys.stdout)


def say_json(text: str) -> None:
    """Print JSON on stdout: the same value, with what cannot be seen in JSON's own escapes."""
    print(_HIDDEN.sub(lambda found: _in_json(found[0]), text))


def _in_json(character: str) -> str:
    return character if _shown(character, "\n\t") == character else json.dumps(character)[1:-1]


def duration(seconds: float) -> str:
    """'45 seconds', '12 minutes', '3.5 hours'."""
    number, unit = seconds, "seconds"
    for name, size in (("years", 31_557_600), ("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            number, unit = seconds / size, name
            break
    return f"{number:.2g} {unit}" if number < 10 else f"{number:,.0f} {unit}"

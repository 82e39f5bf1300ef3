"""Text from outside as CSV, Markdown and YAML: it says the same, and does nothing there."""

from __future__ import annotations

import json
import re

from studfinder.visible import visible

_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_WORD = re.compile(r"[\w/.-]+", re.ASCII)


def for_csv(cell: object) -> object:
    """A cell of a CSV file. What a spreadsheet would take for a formula begins with an apostrophe; numbers stay."""
    if not isinstance(cell, str):
        return cell
    cell = visible(cell)
    return f"'{cell}" if cell.lstrip().startswith(_FORMULA) and not _NUMBER.fullmatch(cell) else cell


def for_markdown(text: object) -> str:
    """One line of Markdown that reads as the text: no link, image, HTML, code, emphasis, heading, cell or reference.

    What means nothing where it stands stays as it is, so that the file can be read too: an underscore inside a word,
    a bracket that no link follows.
    """
    line = visible(text)
    line = re.sub(r"\\(?=[!-/:-@\[-`{-~])", r"\\\\", line)  # before punctuation; the escapes of `visible` mean nothing
    line = re.sub(r"[`*|$~]", r"\\\g<0>", line)
    line = re.sub(r"(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])", r"\\_", line)
    line = re.sub(r"<(?=[A-Za-z/!?])", r"\\<", line)
    line = re.sub(r"&(?=#?\w+;)", r"\\&", line)
    line = re.sub(r"\](?=[(\[:])", r"\\]", line)
    line = re.sub(
        r":(?=//)|(?<=www)\.|@(?=[\w-])", r"\\\g<0>", line, flags=re.IGNORECASE
    )  # a bare address is a link, too
    line = re.sub(r"^(\s*)([#>=+-])", r"\1\\\2", line)
    return re.sub(r"^(\s*\d+)([.)])(?=\s|$)", r"\1\\\2", line)


def code(text: object) -> str:
    """A span of code in Markdown, whatever backticks it holds."""
    line = visible(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    room = " " if line.startswith("`") or line.endswith("`") or not line.strip() else ""
    return f"{fence}{room}{line}{room}{fence}"


def for_yaml(text: object) -> str:
    """A scalar of YAML that is this text: as it is where it is a plain word, else in quotes."""
    line = visible(text)
    plain = _WORD.fullmatch(line) and line[0].isalpha() and line.lower() not in _MEANT
    return line if plain else json.dumps(line, ensure_ascii=False)


_MEANT = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
"""Words that YAML reads as something else than text."""

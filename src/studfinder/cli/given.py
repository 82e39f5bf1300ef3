"""Options from a file: `--config FILE` becomes the arguments that it stands for, before those that are given.

A YAML or JSON file holds options by name, with `command` (the verb) and `model` among them; the record of an earlier
run holds the command line that made it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from studfinder.errors import StudfinderError

_FLAG = "--config"
_OWN = ("--out",)
"""What an earlier run's command says of itself alone, with a value; and --overwrite."""


def with_config(arguments: list[str]) -> list[str]:
    """Arguments with those of a file in the place of `--config FILE`; as they are where there is none.

    Raises:
        StudfinderError: no file, one that cannot be read as such, or one of another command.
    """
    for place, one in enumerate(arguments):
        flag, equals, value = one.partition("=")
        if flag == _FLAG:
            rest = arguments[:place] + arguments[place + (1 if equals else 2) :]
            if not equals and place + 1 == len(arguments):
                raise StudfinderError("--config names no file", expected="a YAML or JSON file, or a run's record")
            return _joined(rest, _arguments(Path(value if equals else arguments[place + 1])))
    return arguments


def _joined(given: list[str], kept: list[str]) -> list[str]:
    """The file's arguments, and behind them the given ones, which count."""
    verb = next((one for one in given if not one.startswith("-")), None)
    if verb is None or verb == kept[0]:
        return [*kept, *(one for place, one in enumerate(given) if one != verb or given.index(one) != place)]
    raise StudfinderError(f"the file of --config is of studfinder {kept[0]}, not of {verb}")


def _arguments(path: Path) -> list[str]:
    import yaml

    from studfinder.records.outside import read_text

    place = (
        next((one for one in sorted(path.glob("*.json")) if one.name != "run.json"), path) if path.is_dir() else path
    )
    try:
        found = yaml.safe_load(read_text(place, name="the file of --config"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = str(error).splitlines()[0][:200]
        raise StudfinderError(f"{place} is neither YAML nor JSON ({said})", expected="options by name") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise StudfinderError(f"{place} holds no options by name", expected="e.g. command: scan, model: ./mine")
    if isinstance(run := found.get("run"), dict):
        return _of_record(str(place), run.get("command"))
    verb = found.pop("command", None)
    if not isinstance(verb, str) or not verb:
        raise StudfinderError(f"{place} names no command", expected="command: scan, say, or the record of a run")
    model = found.pop("model", None)
    return [*verb.split(), *([] if model is None else [str(model)]), *_options(found)]


def _of_record(name: str, command: Any) -> list[str]:
    words = shlex.split(command) if isinstance(command, str) and command.startswith("studfinder ") else []
    if len(words) < 2:
        raise StudfinderError(f"{name} was made in Python, not by a command", expected="the record of a command's run")
    kept, skipped = [], False
    for one in words[1:]:
        if skipped or one == "--overwrite" or one.partition("=")[0] in _OWN:
            skipped = not skipped and one in _OWN
            continue
        kept.append(one)
    return kept


def _options(found: Mapping[str, Any]) -> Iterator[str]:
    for name, value in found.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{flag}" if value else f"--no-{flag}"
            continue
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict | list):
                raise StudfinderError(f"--config: {name} is {one!r}", expected="a text, a number or a list of them")
            yield from (f"--{flag}", str(one))

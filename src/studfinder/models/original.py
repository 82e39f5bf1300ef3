"""What a checkpoint was made from, as far as it says so itself and that is at hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from studfinder.errors import StudfinderError
from studfinder.models.builtin import BUILTINS
from studfinder.records.outside import read_json


def original_named(model: Any) -> str:
    """The original that a checkpoint's card, config or our own record names: a folder that exists, a built-in model, or
    an id of the hub.

    Raises:
        StudfinderError: it names none.
    """
    folder = Path(os.fspath(model)) if isinstance(model, str | os.PathLike) else None
    named = list(dict.fromkeys(_named(folder))) if folder is not None and folder.is_dir() else []
    for name in named:
        if name in BUILTINS or Path(name).is_dir():
            return name
    hub = next((name for name in named if name.count("/") == 1 and not name.startswith((".", "/"))), None)
    if hub is not None:
        return hub
    said = f"; it names {', '.join(named)}, which is not here" if named else ""
    raise StudfinderError(f"what {model} was made from is not known{said}", do="Name it: --against ORIGINAL")


def _named(folder: Path) -> Iterator[str]:
    card = folder / "README.md"
    if card.is_file():
        _, mark, rest = card.read_text(encoding="utf-8", errors="replace").partition("---\n")
        try:
            said = yaml.safe_load(rest.partition("\n---")[0]) if mark else None
        except yaml.YAMLError:
            said = None
        base = said.get("base_model") if isinstance(said, dict) else None
        yield from (str(one) for one in (base if isinstance(base, list) else [base]) if one)
    for file, key in (("config.json", "_name_or_path"),):
        if (folder / file).is_file():
            found = read_json(folder / file).get(key)
            if isinstance(found, str) and found and Path(found) != folder:
                yield found

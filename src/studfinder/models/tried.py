"""What was tried on a tiny model of each architecture, with which result; written by benchmarks/architectures.py."""

from __future__ import annotations

import json
from collections import Counter
from importlib.resources import files
from typing import Any

from studfinder.records import Table

_TITLES = {
    "attention": "attention",
    "feed-forward": "feed-forward",
    "unknown": "unknown parts",
    "parts": "parts as listed by eye",
    "planted": "planted super weights",
    "reading": "reading changes nothing",
    "patch": "a patch leaves nothing",
    "quantize": "quantised and reloaded",
    "convert": "attention converted",
}


def architectures() -> dict[str, Any]:
    """The record: `made with` (versions) and `types` (by model type: a text for each thing tried; "yes" where all was
    as it should be; absent where it was not tried)."""
    return json.loads(files("studfinder.models").joinpath("architectures.json").read_text("utf-8"))


def architectures_table() -> Table:
    """One row a type; under it how many said yes to each."""
    record = architectures()
    types: dict[str, dict[str, Any]] = record["types"]
    asked = [name for name in _TITLES if any(name in row for row in types.values())]
    counts = {name: Counter(row.get(name) for row in types.values()) for name in asked}
    yes = [f"{_TITLES[name]}: {counts[name]['yes']} of {len(types)}" for name in asked if counts[name]["yes"]]
    return Table(
        title=f"{len(types)} architectures, tiny random models of each",
        columns=("model_type", "layers", *(_TITLES[name] for name in asked)),
        rows=tuple((kind, row["layers"], *(row.get(name) for name in asked)) for kind, row in sorted(types.items())),
        note="; ".join(yes) + ". Made with " + ", ".join(f"{k} {v}" for k, v in record["made with"].items()) + ".",
    )

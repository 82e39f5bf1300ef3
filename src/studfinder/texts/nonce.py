"""Invented names and plain filler: words that no model has learnt anything about."""

from __future__ import annotations

import json
import random
from functools import cache
from importlib.resources import files


def nonce_names(count: int, generator: random.Random) -> list[str]:
    """So many different invented names of two or three syllables, e.g. "Drovanth"."""
    parts = _syllables()
    names: dict[str, None] = {}
    while len(names) < count:
        syllables = generator.choice((1, 1, 2))
        word = "".join(
            generator.choice(parts["middles" if i else "starts"]) + generator.choice(parts["vowels"])
            for i in range(syllables + 1)
        )
        names[(word + generator.choice(parts["ends"])).capitalize()] = None
    return list(names)


@cache
def _syllables() -> dict[str, list[str]]:
    return json.loads(files("studfinder.texts").joinpath("data/syllables.json").read_text("utf-8"))


@cache
def filler() -> tuple[str, ...]:
    """Our own plain sentences that say nothing worth remembering."""
    content = files("studfinder.texts").joinpath("data/filler.txt").read_text("utf-8")
    return tuple(line for line in content.splitlines() if line.strip())

"""Invented names and plain filler: words that no model has learnt anything about."""

from __future__ import annotations

import random
from functools import cache
from importlib.resources import files

_STARTS = (
    "b",
    "br",
    "d",
    "dr",
    "f",
    "fl",
    "g",
    "gl",
    "k",
    "kr",
    "l",
    "m",
    "n",
    "p",
    "pl",
    "r",
    "s",
    "t",
    "tr",
    "v",
    "z",
)
_VOWELS = ("a", "e", "i", "o", "u", "ae", "oo")
_MIDDLES = ("bl", "d", "dr", "g", "l", "lm", "m", "nd", "nth", "p", "r", "rv", "sk", "t", "v", "x", "z")
_ENDS = ("", "d", "f", "k", "lt", "m", "n", "nk", "p", "sh", "th", "x")


def nonce_names(count: int, generator: random.Random) -> list[str]:
    """So many different invented names of two or three syllables, e.g. "Drovanth"."""
    names: dict[str, None] = {}
    while len(names) < count:
        syllables = generator.choice((1, 1, 2))
        word = "".join(
            generator.choice(_STARTS if i == 0 else _MIDDLES) + generator.choice(_VOWELS) for i in range(syllables + 1)
        )
        names[(word + generator.choice(_ENDS)).capitalize()] = None
    return list(names)


@cache
def filler() -> tuple[str, ...]:
    """Our own plain sentences that say nothing worth remembering."""
    content = files("studfinder.texts").joinpath("data/filler.txt").read_text("utf-8")
    return tuple(line for line in content.splitlines() if line.strip())

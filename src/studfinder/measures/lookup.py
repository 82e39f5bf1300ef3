"""One of many numbers, asked for by name."""

from __future__ import annotations

import random

import numpy as np

from studfinder.errors import StudfinderError
from studfinder.measures.asked import Advance, sizes_asked
from studfinder.measures.recall import Prompt, places, recall
from studfinder.measures.scores import Scores
from studfinder.models import LM
from studfinder.texts import nonce_names

PAIRS = "2,4,8,16"
_DIGITS = 3
_WRONG = 7

_HEAD = "Each name has a code."
_QUESTION = "Once more, the code of one of them:"


def lookup(
    lm: LM, pairs: str = PAIRS, *, limit: int | None = None, seed: int = 0, progress: Advance | None = None
) -> Scores:
    """Key-value recall: share of codes of three digits that greedy generation gives back exactly, over the number of
    pairs in the prompt and the place of the one that is asked for.

    Names are invented. Chance is that of saying any of the codes, 1 / pairs. "margin" holds the right code against up
    to seven others of the same prompt. See `recall` for further items and details.

    Args:
        pairs: how many pairs the prompts hold, "8,16".
        limit: at most so many prompts; all numbers of pairs and places take their turn.
        seed: draws names, codes and order.

    Raises:
        StudfinderError: there are not so many codes, or prompts do not fit into the model's window.
    """
    sizes = sizes_asked(pairs, "lookup")
    if max(sizes) > (most := 9 * 10 ** (_DIGITS - 1)):
        raise StudfinderError(f"lookup: {max(sizes)} pairs", expected=f"at most {most}, for each has its own code")
    chosen = places(sizes, seed, limit)
    chance = float(np.mean([1 / size for size, *_ in chosen])) if chosen else 0.0
    return recall(lm, "lookup", [_prompt(*place) for place in chosen], f"pairs {pairs}", chance, progress)


def _prompt(size: int, depth: float, generator: random.Random) -> Prompt:
    names = nonce_names(size, generator)
    codes = [str(code) for code in generator.sample(range(10 ** (_DIGITS - 1), 10**_DIGITS), size)]
    asked = round(depth * (size - 1))
    lines = [f"{name}: {code}" for name, code in zip(names, codes, strict=True)]
    wrong = [code for i, code in enumerate(codes) if i != asked]
    return Prompt(
        "\n".join([_HEAD, *lines, _QUESTION, f"{names[asked]}:"]),
        codes[asked],
        tuple(generator.sample(wrong, min(_WRONG, len(wrong)))),
        (f"{size} pairs", f"depth {depth:g}"),
    )

"""One of many numbers, asked for by name."""

from __future__ import annotations

import random
from itertools import count, cycle

from studfinder.errors import StudfinderError
from studfinder.measures.asked import Advance, sizes_asked
from studfinder.measures.choices import Square, choice, square_scores
from studfinder.measures.scores import Scores
from studfinder.models import LM
from studfinder.texts import nonce_names

PAIRS = "2,4,8,16"
_ITEMS = 120
_MOST = 64
"""Every name is asked for with every code to choose from: the square of it."""
_DIGITS = 3

_HEAD = "Each name has a code."
_QUESTION = "Once more, the code of one of them:"


def lookup(
    lm: LM, pairs: str = PAIRS, *, limit: int | None = None, seed: int = 0, progress: Advance | None = None
) -> Scores:
    """Key-value recall: which of the codes in the prompt an invented name has; each name of a prompt is asked for.

    Codes are of three digits. Chance is that of saying any of them, 1 / pairs. Details: accuracy by number of pairs.

    Args:
        pairs: how many pairs the prompts hold, "8,16"; 2 is the least.
        limit: at most so many questions (one prompt at least), 120 unless told; numbers of pairs take their turn.
        seed: draws names, codes and order.

    Raises:
        StudfinderError: more than 64 pairs, or prompts that do not fit into the model's window.
    """
    sizes, room = sizes_asked(pairs, "lookup"), _ITEMS if limit is None else limit
    if not 2 <= min(sizes) <= max(sizes) <= _MOST:
        raise StudfinderError(f"lookup:{pairs}", expected=f"from 2 to {_MOST} pairs")
    squares: list[Square] = []
    for number, size in zip(count(), cycle(sizes), strict=False):
        if room < (size if squares else 1):
            break
        room -= size
        squares.append(_square(size, number, random.Random(f"{seed} {number} {size}")))
    return square_scores(lm, "lookup", squares, f"pairs {pairs}", progress)


def _square(size: int, number: int, generator: random.Random) -> Square:
    names = nonce_names(size, generator)
    codes = [str(code) for code in generator.sample(range(10 ** (_DIGITS - 1), 10**_DIGITS), size)]
    lines = [f"{name}: {code}" for name, code in zip(names, codes, strict=True)]
    prompts = ["\n".join([_HEAD, *lines, _QUESTION, f"{name}:"]) for name in names]
    return choice(prompts, codes, f"prompt {number}", f"{size} pairs")

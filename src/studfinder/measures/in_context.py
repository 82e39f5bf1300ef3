"""What only the prompt says: which of some rules its examples follow, of words or of numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from studfinder.errors import unknown
from studfinder.measures.asked import Advance
from studfinder.measures.choices import Square, choice, square_scores, whole
from studfinder.measures.scores import Scores
from studfinder.models import LM

_ITEMS = 200
_EXAMPLES = 3
_TERMS = 5

_WORDS = """
lamp river stone cloud garden window pencil basket bottle candle carpet castle corner engine farmer finger
forest hammer island jacket kettle ladder letter market mirror mountain needle orange painter pillow pocket
rabbit ribbon saddle school shadow shoulder spider street summer temple ticket tunnel valley village wagon
winter table
"""
_RULES: tuple[Callable[[str], str], ...] = (
    lambda word: f"{word}s",
    str.upper,
    lambda word: word[0],
    lambda word: f"the {word}",
)


def in_context(
    lm: LM, kind: str = "words", *, limit: int | None = None, seed: int = 0, progress: Advance | None = None
) -> Scores:
    """Accuracy at going on as examples in the prompt do; what they leave open no knowledge fills.

    "words": three examples of one of four rules ("lamp -> LAMP"), then a new word; the answers are what the four rules
    make of it. "numbers": a row of five numbers with one of four steps, up to the same number; the answers are the four
    next ones. The same answers stand to choice after each rule or step (see `choices.Square`), and none stands in the
    prompt, so that liking one of them scores exactly 1/4.

    Args:
        kind: "words" or "numbers".
        limit: at most so many questions (one square at least), 200 unless told.
        seed: draws words and numbers.

    Raises:
        StudfinderError: there is no such kind, or prompts do not fit into the model's window.
    """
    if kind not in _KINDS:
        raise unknown("in-context: there is no kind", kind, _KINDS)
    of = _KINDS[kind]
    squares = [of(number, random.Random(f"{seed} {kind} {number}")) for number in range(whole(limit, 4, _ITEMS))]
    return square_scores(lm, "in-context", squares, kind, progress)


def _words(number: int, generator: random.Random) -> Square:
    asked, *examples = generator.sample(_WORDS.split(), 1 + _EXAMPLES)
    prompts = ["\n".join([*(f"{word} -> {rule(word)}" for word in examples), f"{asked} ->"]) for rule in _RULES]
    return choice(prompts, [rule(asked) for rule in _RULES], f"{asked} {number}")


def _numbers(number: int, generator: random.Random) -> Square:
    steps = generator.sample(range(2, 12), 4)
    last = generator.randrange(11 * (_TERMS - 1) + 1, 100 - 11)
    prompts = ["Go on: " + ", ".join(map(str, _row(last, step))) + "," for step in steps]
    return choice(prompts, [str(last + step) for step in steps], f"{last} {number}")


def _row(last: int, step: int) -> Sequence[int]:
    return range(last - step * (_TERMS - 1), last + 1, step)


_KINDS = {"words": _words, "numbers": _numbers}

"""A number hidden in a long text, asked for at its end."""

from __future__ import annotations

import random
from collections.abc import Iterator

from studfinder.errors import StudfinderError
from studfinder.measures.asked import Advance, sizes_asked
from studfinder.measures.recall import Prompt, places, recall
from studfinder.measures.scores import Scores
from studfinder.models import LM
from studfinder.texts import WHOLE, Text, encode, filler

LENGTHS = "128,256,512,1024"
_DIGITS = 5

_HEAD = "There is a pass key hidden in the text below. Find it and remember it."
_KEY = "The pass key is {key}. Remember it. {key} is the pass key."
_QUESTION = "What is the pass key? The pass key is"


def passkey(
    lm: LM, lengths: str = LENGTHS, *, limit: int | None = None, seed: int = 0, progress: Advance | None = None
) -> Scores:
    """Share of pass keys of five digits that greedy generation gives back exactly, over lengths and depths.

    After Mohtashami and Jaggi (2023, arXiv 2305.16300), with filler sentences of our own, which do not repeat until
    all have been used. See `recall` for items and details.

    Args:
        lengths: of prompts in tokens, "128,256"; a prompt is at most a sentence shorter.
        limit: at most so many prompts; all lengths and depths take their turn.
        seed: draws keys and the order of the filler.

    Raises:
        StudfinderError: a length that is too short for the question or too long for the model's window.
    """
    prompts = [_prompt(lm, *place) for place in places(sizes_asked(lengths, "passkey"), seed, limit)]
    return recall(lm, "passkey", prompts, f"lengths {lengths}", 10.0**-_DIGITS, progress)


def _prompt(lm: LM, length: int, depth: float, generator: random.Random) -> Prompt:
    key = str(generator.randrange(10 ** (_DIGITS - 1), 10**_DIGITS))
    # Counted with its answer; a sentence by itself takes at most a token more than within a text.
    room = length - _tokens(lm, f"{_HEAD} {_KEY.format(key=key)} {_QUESTION} {key}")
    if room < 0:
        raise StudfinderError(f"passkey: length {length}", expected=f"at least {length - room} tokens")
    sentences = []
    for sentence in _endless(generator):
        room -= _tokens(lm, " " + sentence)
        if room < 0:
            break
        sentences.append(sentence)
    sentences.insert(round(depth * len(sentences)), _KEY.format(key=key))
    text = " ".join([_HEAD, *sentences, _QUESTION])
    return Prompt(text, key, (), (f"length {length}", f"depth {depth:g}"))


def _endless(generator: random.Random) -> Iterator[str]:
    while True:
        yield from generator.sample(filler(), len(filler()))


def _tokens(lm: LM, text: str) -> int:
    return len(encode(lm, [Text("passkey", text)], limit=WHOLE)[0][0])

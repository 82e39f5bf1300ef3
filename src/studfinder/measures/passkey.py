"""A number hidden in a long text, asked for at its end."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count, islice

import numpy as np

from studfinder.errors import StudfinderError
from studfinder.measures.asked import Advance, check_items, check_window, sizes_asked
from studfinder.measures.choices import by_group
from studfinder.measures.likelihood import log_likelihoods
from studfinder.measures.scores import Scores, scored
from studfinder.models import LM
from studfinder.texts import WHOLE, Text, digest, encode, encode_pairs, filler

LENGTHS = "128,256,512,1024"
_DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Where the key stands: at the prompt's start (0) to its end."""
_ITEMS = 40
_DIGITS = 5

_HEAD = "There is a pass key hidden in the text below. Find it and remember it."
_KEY = "The pass key is {key}. Remember it. {key} is the pass key."
_QUESTION = "What is the pass key? The pass key is"


def passkey(
    lm: LM, lengths: str = LENGTHS, *, limit: int | None = None, seed: int = 0, progress: Advance | None = None
) -> Scores:
    """Share of pass keys of five digits of which every token is the model's first choice, over lengths and depths.

    After Mohtashami and Jaggi (2023, arXiv 2305.16300), with filler sentences of our own, which do not repeat until
    all have been used. Greedy generation would begin with the key in the same cases, but key and prompt are read in one
    pass, so that an edit of activations acts on both. Items: "score" and "correct", "logprob" (of the key, nats a
    token). Details: accuracy by length and by depth; "logprob", its mean.

    Args:
        lengths: of prompts in tokens, "128,256"; a prompt is at most a sentence shorter. Half as long ones come twice
            as often, so that every length takes as many tokens.
        limit: so many prompts, 40 unless told; all lengths and depths take their turn.
        seed: draws keys and the order of the filler.

    Raises:
        StudfinderError: a length that is too short for the question or too long for the model's window.
    """
    sizes = sizes_asked(lengths, "passkey")
    turn = [(size, part) for size in sizes for part in range(max(sizes) // size)]  # as many tokens of every length
    every = (
        (size, _DEPTHS[(number * (max(sizes) // size) + part) % len(_DEPTHS)])
        for number in count()
        for size, part in turn
    )
    chosen = list(islice(every, _ITEMS if limit is None else limit))
    check_items("passkey", chosen)
    asked = [_asked(lm, size, depth, random.Random(f"{seed} {n}")) for n, (size, depth) in enumerate(chosen)]
    pairs = encode_pairs(lm, asked)
    check_window(lm, "passkey", max(len(context) + len(key) for context, key in pairs))
    found = log_likelihoods(lm, pairs, progress=progress)
    correct = [float(likelihood.greedy) for likelihood in found]
    logprob = [likelihood.logprob / likelihood.tokens for likelihood in found]
    details = {"logprob": float(np.mean(logprob))}
    for name, place in (("length", 0), ("depth", 1)):
        details |= by_group([f"{name} {one[place]:g}" for one in chosen], correct)
    return scored(
        "passkey",
        correct,
        text=f"lengths {lengths} {digest(pairs)}",
        chance=10.0**-_DIGITS,
        details=details,
        correct=correct,
        logprob=logprob,
    )


def _asked(lm: LM, length: int, depth: float, generator: random.Random) -> tuple[str, str]:
    """A prompt, and the key that follows it."""
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
    return " ".join([_HEAD, *sentences, _QUESTION]), " " + key


def _endless(generator: random.Random) -> Iterator[str]:
    while True:
        yield from generator.sample(filler(), len(filler()))


def _tokens(lm: LM, text: str) -> int:
    return len(encode(lm, [Text("passkey", text)], limit=WHOLE)[0][0])

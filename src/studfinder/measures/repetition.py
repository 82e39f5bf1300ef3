"""Does what a model writes go round in circles?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from studfinder.measures.asked import Advance, check_items, check_window, number_asked
from studfinder.measures.greedy import greedy
from studfinder.measures.scores import Scores, scored
from studfinder.models import LM
from studfinder.sites import replacing
from studfinder.texts import Text, default_prompts, digest, encode, proof_text

NEW = 64
_PROMPT = 24
_TIMES = 3


def repetition(
    lm: LM, new: str = str(NEW), *, limit: int | None = None, seed: int = 0, progress: Advance | None = None
) -> Scores:
    """Distinct-2 of greedy continuations: different pairs of neighbouring tokens over all pairs (Li et al. 2016), the
    mean over prompts. 1 is no repetition; a model stuck on one token has about 0.

    Prompts are the first 24 tokens of our default prompts and of our proof text's pieces. Every continuation is `new`
    tokens long (the model may not end its text), so that none looks less repetitive by being short. Items: "score",
    "distinct1", "distinct3", and "loop" (1 if the end of the continuation is one sequence of tokens at least three
    times over). Details: their means. Repetition is no fault by itself: text may repeat, and a model that writes noise
    scores 1. Read it beside perplexity.

    Args:
        new: tokens to write.
        limit: at most so many prompts. Nothing is drawn, so `seed` changes nothing.

    Raises:
        StudfinderError: `new` is not a number from 4 up, or does not fit into the model's window.
    """
    count = number_asked(new, "repetition", 4, "tokens")
    check_window(lm, "repetition", _PROMPT + count)
    bodies = [Text(piece.name, piece.text.split("\n", 1)[-1]) for piece in proof_text()]  # without their titles
    encoded = encode(lm, [*default_prompts(), *bodies], limit=_PROMPT)[0]
    encoded = [ids for ids in encoded if len(ids) == _PROMPT][:limit]
    check_items("repetition", encoded)
    # An edit of activations may depend on all tokens of a pass, so then each prompt has its own.
    size = 1 if replacing(lm) else len(encoded)
    written = []
    for start in range(0, len(encoded), size):
        written += greedy(lm, encoded[start : start + size], count, to_the_end=True)
        if progress is not None:
            progress(size)
    items = {f"distinct{n}": [distinct_share(ids, n) for ids in written] for n in (1, 2, 3)}
    items["loop"] = [float(loops(ids)) for ids in written]
    score = items.pop("distinct2")
    return scored(
        f"repetition ({count} tokens)",
        score,
        text=f"studfinder-prompts-1 and studfinder-proof-1 {digest(encoded)}",
        details={name: float(np.mean(values)) for name, values in items.items()},
        **items,  # type: ignore[arg-type]
    )


def distinct_share(ids: Sequence[int], n: int) -> float:
    """Different n-grams over all n-grams."""
    grams = list(zip(*(ids[i:] for i in range(n)), strict=False))
    return len(set(grams)) / len(grams)


def loops(ids: Sequence[int]) -> bool:
    """Whether a text ends in one sequence of tokens three times over, or more."""
    ids = list(ids)
    return any(ids[-period * _TIMES :] == ids[-period:] * _TIMES for period in range(1, len(ids) // _TIMES + 1))

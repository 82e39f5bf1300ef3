"""Digits to be found again in a prompt: what passkey and lookup share."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from studfinder.measures.asked import Advance, check_items, check_window
from studfinder.measures.choices import by_group
from studfinder.measures.greedy import greedy
from studfinder.measures.likelihood import log_likelihoods
from studfinder.measures.scores import Scores, scored
from studfinder.models import LM
from studfinder.texts import as_text, digest, encode_pairs

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Where the digits stand: at the prompt's start (0) to its end."""
_REPEATS = 2


@dataclass(frozen=True)
class Prompt:
    """A prompt that ends where digits follow.

    Attributes:
        text: the prompt.
        answer: the digits.
        wrong: other digits, against which the answer's likelihood is held; may be empty.
        groups: by which accuracy is detailed, e.g. ("length 256", "depth 0.5").
    """

    text: str
    answer: str
    wrong: tuple[str, ...]
    groups: tuple[str, ...]


def places(sizes: Sequence[int], seed: int, limit: int | None) -> list[tuple[int, float, random.Random]]:
    """At most `limit` sizes and depths, all of which take their turn, each with a generator of its own."""
    every = [(size, depth, repeat) for repeat in range(_REPEATS) for depth in DEPTHS for size in sizes][:limit]
    return [(size, depth, random.Random(f"{seed} {size} {depth} {repeat}")) for size, depth, repeat in every]


def recall(
    lm: LM, measure: str, prompts: Sequence[Prompt], source: str, chance: float, progress: Advance | None = None
) -> Scores:
    """Share of prompts whose greedy continuation is the answer, exactly.

    Items: "score" and "correct", "logprob" (of the answer, teacher-forced, nats a token), and "margin" (that minus the
    likeliest wrong answer's) where there are wrong answers. Details: accuracy by group; "logprob", its mean.

    Raises:
        StudfinderError: no prompts, or a prompt with its answer is longer than the model's window.
    """
    check_items(measure, prompts)
    asked = [(prompt.text, " " + digits) for prompt in prompts for digits in (prompt.answer, *prompt.wrong)]
    pairs = encode_pairs(lm, asked)
    check_window(lm, measure, max(len(context) + len(digits) for context, digits in pairs))
    found = log_likelihoods(lm, pairs)
    each = np.array([likelihood.logprob / likelihood.tokens for likelihood in found])
    correct, logprob, margin, at = [], [], [], 0
    for prompt in prompts:
        context, digits = pairs[at]
        values = each[at : at + 1 + len(prompt.wrong)]
        correct.append(float(_said(lm, context, len(digits)) == prompt.answer))
        logprob.append(float(values[0]))
        margin.append(float(values[0] - values[1:].max()) if prompt.wrong else 0.0)
        at += len(values)
        if progress is not None:
            progress(1)
    details = {"logprob": float(np.mean(logprob))}
    for column in zip(*(prompt.groups for prompt in prompts), strict=True):
        details |= by_group(column, correct)
    against = {"margin": margin} if all(prompt.wrong for prompt in prompts) else {}
    return scored(
        measure,
        correct,
        text=f"{source} {digest(pairs)}",
        chance=chance,
        details=details,
        correct=correct,
        logprob=logprob,
        **against,  # type: ignore[arg-type]
    )


def _said(lm: LM, context: Sequence[int], tokens: int) -> str:
    """The digits that the model begins its continuation with."""
    assert lm.tokenizer is not None
    text = as_text(lm.tokenizer, greedy(lm, [context], tokens + 1)[0], skip_special_tokens=True)
    match = re.match(r"\s*(\d+)", text)
    return match[1] if match else ""

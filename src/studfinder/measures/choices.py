"""Multiple choice by log-probability: no yes or no, nothing to parse, and what guessing scores is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from studfinder.measures.asked import Advance, check_items
from studfinder.measures.likelihood import log_likelihoods
from studfinder.measures.scores import Scores, scored
from studfinder.models import LM
from studfinder.texts import digest, encode_pairs


@dataclass(frozen=True)
class Question:
    """A context that ends where the answer follows.

    Attributes:
        context: the prompt.
        answers: the right one first; none begins with a space.
        cluster: what hangs together, e.g. the subject that several questions are about.
        group: by which accuracy is detailed, e.g. the relation.
    """

    context: str
    answers: tuple[str, ...]
    cluster: str
    group: str = ""


def per_token(lm: LM, questions: Sequence[Question], progress: Advance | None = None) -> tuple[list[np.ndarray], str]:
    """Mean log-probability a token, in nats, of each answer to each question; and the digest of all token ids.

    The mean, not the sum, because answers differ in length and a sum prefers short ones.
    """
    pairs = encode_pairs(
        lm, [(question.context, " " + answer) for question in questions for answer in question.answers]
    )
    found = log_likelihoods(lm, pairs, progress=progress)
    flat = np.array([likelihood.logprob / likelihood.tokens for likelihood in found])
    ends = np.cumsum([len(question.answers) for question in questions])
    return np.split(flat, ends[:-1]), digest(pairs)


def multiple_choice(
    lm: LM, measure: str, questions: Sequence[Question], source: str, progress: Advance | None = None
) -> Scores:
    """Accuracy: the answer with the highest mean log-probability a token is the model's.

    Items: "score" and "correct" (0 or 1), "margin" (right answer minus the best wrong one, nats a token). Chance is
    the mean of 1 / answers. Details: accuracy by group.

    Raises:
        StudfinderError: there are no questions, or one does not fit into the model's window.
    """
    check_items(measure, questions)
    answers, ids = per_token(lm, questions, progress)
    margin = [float(of[0] - of[1:].max()) for of in answers]
    correct = [float(value > 0) for value in margin]
    return scored(
        measure,
        correct,
        text=f"{source} {ids}",
        chance=float(np.mean([1 / len(question.answers) for question in questions])),
        clusters=[question.cluster for question in questions],
        details=by_group([question.group for question in questions], correct),
        correct=correct,
        margin=margin,
    )


def by_group(groups: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Mean by group, in the order of first appearance."""
    return {
        group: float(np.mean([value for own, value in zip(groups, values, strict=True) if own == group]))
        for group in dict.fromkeys(groups)
        if group
    }

"""Multiple choice by log-probability, in squares: what is not an answer to the question scores exactly chance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from studfinder.measures.asked import Advance, check_items
from studfinder.measures.likelihood import Request, log_likelihoods
from studfinder.measures.scores import Scores, scored
from studfinder.models import LM
from studfinder.texts import digest, encode_pairs
from studfinder.texts.pairs import common


@dataclass(frozen=True)
class Square:
    """n questions with the same n answers, each of which is right once: the i-th for the i-th question.

    What a model likes about an answer by itself, it likes after every question: it is measured there, and taken off. So
    a rule that does not look at question and answer together scores exactly 1 / n.

    Attributes:
        asked: for question i and answer j the prompt and the continuation whose log-probability speaks for j.
        against: a continuation whose log-probability after the same prompt is taken off, e.g. " no"; or nothing.
        cluster: what hangs together, e.g. several wordings of the same questions.
        group: by which accuracy is detailed, e.g. the relation.
    """

    asked: tuple[tuple[tuple[str, str], ...], ...]
    cluster: str
    group: str = ""
    against: str = ""


def choice(prompts: Sequence[str], answers: Sequence[str], cluster: str, group: str = "") -> Square:
    """Questions whose answers follow them; no answer begins with a space."""
    return Square(tuple(tuple((prompt, " " + answer) for answer in answers) for prompt in prompts), cluster, group)


def evidence(lm: LM, squares: Sequence[Square], progress: Advance | None = None) -> tuple[list[np.ndarray], str]:
    """What speaks for each answer to each question, (n, n) nats a square; and the digest of all token ids.

    It is the log-probability of the answer's shortest beginning that no other answer to the question shares, as a rule
    one token: all of an answer that decides, and one pass for all answers.
    """
    texts = [
        (prompt, said)
        for square in squares
        for row in square.asked
        for prompt, continuation in row
        for said in (continuation, square.against)
        if said
    ]
    pairs = encode_pairs(lm, texts)
    requests: list[Request] = []
    for square in squares:
        width = len(square.asked) * (2 if square.against else 1)
        for _ in square.asked:
            row = pairs[len(requests) : len(requests) + width]
            own = 2 if square.against else width  # yes and no of one prompt, or all answers to it
            for start in range(0, width, own):
                requests += _cut(row[start : start + own])
    found = [likelihood.logprob for likelihood in log_likelihoods(lm, requests, progress=progress)]
    values, at = [], 0
    for square in squares:
        n, parts = len(square.asked), 2 if square.against else 1
        cells_NNP = np.array(found[at : at + n * n * parts]).reshape(n, n, parts)
        values.append(cells_NNP[..., 0] - (cells_NNP[..., 1] if square.against else 0.0))
        at += cells_NNP.size
    return values, digest(requests)


def _cut(requests: Sequence[Request]) -> Iterable[Request]:
    """Continuations of one prompt as far as each is like another one, and a token more."""
    wholes = [context + continuation for context, continuation in requests]
    for number, (context, continuation) in enumerate(requests):
        alike = max(common(wholes[number], other) for place, other in enumerate(wholes) if place != number)
        yield context, continuation[: max(1, alike + 1 - len(context))]


def square_scores(
    lm: LM,
    measure: str,
    squares: Sequence[Square],
    source: str,
    progress: Advance | None = None,
) -> Scores:
    """Accuracy: the model's answer is the one for which most speaks, beyond what speaks for it over the square's
    questions on average (likely answers are likely everywhere); where k do alike, it is 1 / k of a right one.

    Items: "score" and "correct", a question each, and "margin" (right answer minus the best wrong one, nats). Chance is
    the mean of 1 / answers. Details: accuracy by group; "as they come", accuracy with nothing taken off.

    Raises:
        StudfinderError: there are no questions, or one does not fit into the model's window.
    """
    check_items(measure, squares)
    values, ids = evidence(lm, squares, progress)
    with np.errstate(invalid="ignore"):  # of a model whose numbers are infinite
        # To six digits: what is alike stays alike, whatever it was that was taken off.
        centred = [(value_NN - value_NN.mean(axis=0)).round(6) for value_NN in values]
    correct = [share for value_NN in centred for share in _right(value_NN)]
    margin = [
        float(row_N[right] - np.delete(row_N, right).max())
        for value_NN in centred
        for right, row_N in enumerate(value_NN)
    ]
    groups = [square.group for square in squares for _ in square.asked]
    plain = float(np.mean([share for value_NN in values for share in _right(value_NN)]))
    return scored(
        measure,
        correct,
        text=f"{source} {ids}",
        chance=float(np.mean([1 / len(square.asked) for square in squares for _ in square.asked])),
        clusters=[square.cluster for square in squares for _ in square.asked],
        details={**by_group(groups, correct), "as they come": plain},
        correct=correct,
        margin=margin,
    )


def _right(value_NN: np.ndarray) -> list[float]:
    """By question, whether the right answer has the most: 1, or its share where others have as much; NaN has not."""
    rows = enumerate(value_NN)
    return [float((row_N[i] >= row_N).all() / max(1, (row_N == row_N[i]).sum())) for i, row_N in rows]


def by_group(groups: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Mean by group, in the order of first appearance."""
    return {
        group: float(np.mean([value for own, value in zip(groups, values, strict=True) if own == group]))
        for group in dict.fromkeys(groups)
        if group
    }


def whole(limit: int | None, size: int, most: int) -> int:
    """How many squares make at most `limit` questions (`most` unless told): one at least, if any are asked."""
    questions = most if limit is None else limit
    return max(1, questions // size) if questions > 0 else 0

"""The same question answered from the prompt or from the weights: one prompt, one set of answers, one chance level.

A prompt states as many facts about invented subjects as there are answers, each answer once. In the contextual version
it then asks for one of the invented subjects; in the parametric version, after the very same sentences and in the same
words, for a real one. So every answer, right or wrong, stands in both prompts: whoever copies any of them is right as
often from the one as from the other, once in so many. The contrast of Jin et al. (2025) between contextual and
parametric tasks also changes length, output format and chance level; this one changes a name.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from studfinder.errors import StudfinderError
from studfinder.measures.asked import Advance, number_asked
from studfinder.measures.choices import Square, square_scores, whole
from studfinder.measures.facts import ANSWERS, draw_facts
from studfinder.measures.scores import Scores
from studfinder.models import LM
from studfinder.records import Interval
from studfinder.stats import mean_interval
from studfinder.texts import nonce_names

_ITEMS = 180


def facts_in_context(
    lm: LM,
    count: int | str = ANSWERS,
    *,
    source: str = "built-in",
    limit: int | None = None,
    seed: int = 0,
    progress: Advance | None = None,
) -> Scores:
    """Accuracy on facts about invented subjects that stand in the prompt: answered from context.

    Args:
        count: facts in the prompt, and answers to choose from; 2 is the least.
        source: as of `facts`.
        limit: at most so many questions (one square at least), 180 unless told.
        seed: draws facts, names and order.

    Raises:
        StudfinderError: `count` is not a number from 2 up, or prompts do not fit into the window.
    """
    return _matched(lm, "facts-in-context", count, source, limit, seed, progress)


def facts_parametric_matched(
    lm: LM,
    count: int | str = ANSWERS,
    *,
    source: str = "built-in",
    limit: int | None = None,
    seed: int = 0,
    progress: Advance | None = None,
) -> Scores:
    """Accuracy on real facts after the very prompts of `facts_in_context`, which do not help: answered from the
    weights. Arguments and errors are the same."""
    return _matched(lm, "facts-parametric-matched", count, source, limit, seed, progress)


@dataclass(frozen=True)
class Contrast:
    """What an edit does to answers from context, and beyond what it does to the same answers from the weights.

    Attributes:
        context, memory: change of chance-corrected accuracy, (accuracy - chance) / (1 - chance), edited minus clean.
        accuracy: the difference of the two, context minus memory: below 0, context suffered more.
        margin: the same difference of differences for margins, in nats.
    """

    context: Interval
    memory: Interval
    accuracy: Interval
    margin: Interval


def contrast(
    clean_context: Scores, edited_context: Scores, clean_memory: Scores, edited_memory: Scores, level: float = 0.95
) -> Contrast:
    """The difference of differences, item by item; whole prompts are resampled.

    Raises:
        StudfinderError: the four are not matched runs of `facts_in_context` and `facts_parametric_matched`.
    """
    runs = (clean_context, edited_context, clean_memory, edited_memory)
    if (
        [run.measure for run in runs] != ["facts-in-context"] * 2 + ["facts-parametric-matched"] * 2
        or clean_context.text != edited_context.text
        or clean_memory.text != edited_memory.text
        or len({(run.clusters, run.chance) for run in runs}) > 1
    ):
        raise StudfinderError(
            "these scores are not matched",
            expected="facts-in-context, clean and edited, then facts-parametric-matched, clean and edited",
            do="Run all four with the same count, source, limit and seed",
        )
    headroom = 1 - (clean_context.chance or 0.0)

    def change(before: Scores, after: Scores, name: str) -> np.ndarray:
        return np.array(after.items[name]) - np.array(before.items[name])

    context = change(clean_context, edited_context, "correct") / headroom
    memory = change(clean_memory, edited_memory, "correct") / headroom
    margin = change(clean_context, edited_context, "margin") - change(clean_memory, edited_memory, "margin")
    intervals = [
        mean_interval(values, clean_context.clusters, level=level, what="prompts")
        for values in (context, memory, context - memory, margin)
    ]
    return Contrast(*intervals)


def _matched(
    lm: LM, measure: str, count: int | str, source: str, limit: int | None, seed: int, progress: Advance | None
) -> Scores:
    name, pairs = matched_squares(number_asked(count, measure, 2, "facts"), source, limit, seed)
    squares = [context if measure == "facts-in-context" else memory for context, memory in pairs]
    return square_scores(lm, measure, squares, f"{name}, {count} in the prompt", progress)


def matched_squares(count: int, source: str, limit: int | None, seed: int) -> tuple[str, list[tuple[Square, Square]]]:
    """The source's name, and of every prompt the contextual and the parametric questions."""
    name, drawn = draw_facts(source, count, whole(limit, count, _ITEMS), seed)
    pairs = []
    for some in drawn:
        invented = nonce_names(count, some.draw)
        stated = [some.said(subject, answer) for subject, answer in zip(invented, some.answers, strict=True)]
        some.draw.shuffle(stated)
        before = " ".join(stated) + " "
        pairs.append((some.asked(invented, before), some.asked([subject for subject, _ in some.facts], before)))
    return name, pairs

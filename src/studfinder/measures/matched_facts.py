"""The same question answered from the prompt or from the weights: one format, one set of answers, one chance level.

An item is a prompt that states facts about invented subjects and then asks for one. In the contextual version it asks
about one of the invented subjects. In the parametric version it asks about a real one, in the same words, and the
sentence with the answer has made way for one of another relation, so that the prompt is as long and does not help.
Right and wrong answers are the same in both. The contrast of Jin et al. (2025) between contextual and parametric tasks
also changes length, output format and chance level; this one does not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from studfinder.errors import NotApplicable, StudfinderError
from studfinder.measures.asked import Advance, number_asked
from studfinder.measures.choices import Question, multiple_choice
from studfinder.measures.facts import ANSWERS, Fact, draw_facts, wrong_answers
from studfinder.measures.scores import Scores
from studfinder.models import LM
from studfinder.records import Interval
from studfinder.stats import mean_interval
from studfinder.texts import Relation, nonce_names, relations

DEFAULT_FACTS = 2
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
STATEMENTS = 8
"""Sentences in a prompt, unless more facts of the relation are asked for."""

_ITEMS = 180


def facts_in_context(
    lm: LM,
    count: int | str = DEFAULT_FACTS,
    *,
    source: str = "built-in",
    limit: int | None = None,
    seed: int = 0,
    progress: Advance | None = None,
) -> Scores:
    """Accuracy on facts about invented subjects that stand in the prompt: answered from context.

    Args:
        count: facts of the same relation in the prompt, one of which is asked for; the others' answers are among the
            eight choices, so that with 1 it is enough to find the answer, and with more it must be that of the right
            subject. Sentences of other relations make every prompt eight sentences long. Find `count` once on the
            clean model with `calibrate_facts` and use it for every edited one.
        source: "built-in" or "trex".
        limit: at most so many items, 180 unless told.
        seed: draws items, names and order.

    Raises:
        StudfinderError: `count` is not a number from 1 up, or prompts do not fit into the window.
    """
    return _matched(lm, "facts-in-context", count, source, limit, seed, progress)


def facts_parametric_matched(
    lm: LM,
    count: int | str = DEFAULT_FACTS,
    *,
    source: str = "built-in",
    limit: int | None = None,
    seed: int = 0,
    progress: Advance | None = None,
) -> Scores:
    """Accuracy on real facts after the very prompts of `facts_in_context`, which do not help: answered from the
    weights. Arguments and errors are the same."""
    return _matched(lm, "facts-parametric-matched", count, source, limit, seed, progress)


def calibrate_facts(
    lm: LM,
    *,
    source: str = "built-in",
    limit: int = 72,
    seed: int = 0,
    low: float = 0.6,
    high: float = 0.9,
    progress: Advance | None = None,
) -> int:
    """How many facts in the prompt leave the (clean) model between `low` and `high`, as near the middle as there is.

    Calibrated on other items than those of the same seed that are scored. Both edges of the range being missed is no
    error: the nearest count is returned, and the score will show it.
    """
    middle, best = (low + high) / 2, (float("inf"), COUNTS[0])
    for count in COUNTS:
        try:
            accuracy = _matched(lm, "facts-in-context", count, source, limit, f"calibration {seed}", progress).value
        except NotApplicable:
            if count == COUNTS[0]:
                raise
            break  # longer prompts do not fit, or no relation has so many answers
        best = min(best, (abs(accuracy - middle), count))
        if accuracy < low:
            break
    return best[1]


@dataclass(frozen=True)
class Contrast:
    """What an edit does to answers from context, and beyond what it does to the same answers from the weights.

    Attributes:
        context, memory: change of chance-corrected accuracy, (accuracy - chance) / (1 - chance), edited minus clean.
        accuracy: the difference of the two, context minus memory: below 0, context suffered more.
        margin: the same difference of differences for margins, nats a token.
    """

    context: Interval
    memory: Interval
    accuracy: Interval
    margin: Interval


def contrast(
    clean_context: Scores, edited_context: Scores, clean_memory: Scores, edited_memory: Scores, level: float = 0.95
) -> Contrast:
    """The difference of differences, item by item; whole subjects are resampled.

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
        mean_interval(values, clean_context.clusters, level=level, what="subjects")
        for values in (context, memory, context - memory, margin)
    ]
    return Contrast(*intervals)


def _matched(
    lm: LM, measure: str, count: int | str, source: str, limit: int | None, seed: int | str, progress: Advance | None
) -> Scores:
    size = number_asked(count, measure, 1, "facts")
    name, items = _items(size, source, _ITEMS if limit is None else limit, seed)
    version = 0 if measure == "facts-in-context" else 1
    questions = [versions[version] for versions in items]
    return multiple_choice(lm, measure, questions, f"{name}, {count} of the relation in the prompt", progress)


def _items(count: int, source: str, limit: int, seed: int | str) -> tuple[str, Sequence[tuple[Question, Question]]]:
    """Pairs of the contextual and the parametric version."""
    name, found = relations(source)
    # Every relation must fill all choices, so that chance is one number.
    usable = tuple(relation for relation in found if len(relation.objects) >= max(ANSWERS, count) + 2)
    if len(usable) < 2:
        raise NotApplicable(f"no relations of {name} have {count} answers", do="Ask for fewer facts in the prompt")
    items = []
    for fact, generator in draw_facts(usable, limit, seed):
        wrong = wrong_answers(fact, len(fact.relation.objects), generator)
        if len(wrong) < max(ANSWERS, count) - 1:
            continue  # a subject with many right answers
        items.append(_versions(fact, wrong, count, usable, generator))
    return name, items


def _versions(
    fact: Fact, wrong: list[str], count: int, usable: tuple[Relation, ...], generator: random.Random
) -> tuple[Question, Question]:
    elsewhere = [
        relation for relation in usable if relation is not fact.relation and fact.answer not in relation.objects
    ]
    names = nonce_names(max(STATEMENTS, count) + 1, generator)
    stated = [
        _say(fact.template, name, answer)
        for name, answer in zip(names, [fact.answer, *wrong[: count - 1]], strict=False)
    ]
    beside = []
    for name in names[count:]:  # one more than there is room for: it takes the answer's place
        relation = generator.choice(elsewhere)
        beside.append(_say(generator.choice(relation.templates), name, generator.choice(relation.objects)))
    answer, spare, rest = stated[0], beside[0], [*stated[1:], *beside[1:]]
    generator.shuffle(rest)
    place = generator.randrange(len(rest) + 1)
    contextual, parametric = (
        fact.asked([fact.answer, *wrong[: ANSWERS - 1]], [*rest[:place], sentence, *rest[place:]], subject)
        for sentence, subject in ((answer, names[0]), (spare, fact.subject))
    )
    return contextual, parametric


def _say(template: str, subject: str, answer: str) -> str:
    return f"{template.format(s=subject)} {answer}."

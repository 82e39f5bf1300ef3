"""What a model knows: facts against wrong answers of the same relation."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from studfinder.measures.asked import Advance
from studfinder.measures.choices import Question, multiple_choice
from studfinder.measures.scores import Scores
from studfinder.models import LM
from studfinder.texts import Relation, relations

ANSWERS = 8
_ITEMS = 480


@dataclass(frozen=True)
class Fact:
    """A fact in one wording."""

    relation: Relation
    template: str
    subject: str
    answer: str

    def asked(self, answers: Sequence[str], told: Sequence[str] = (), subject: str = "") -> Question:
        """The question for its answer, or for another subject's in the same words, after sentences of a context."""
        context = " ".join([*told, self.template.format(s=subject or self.subject)])
        return Question(context, tuple(answers), f"{self.relation.name}: {self.subject}", self.relation.name)


def facts(
    lm: LM, source: str = "built-in", *, limit: int | None = None, seed: int = 0, progress: Advance | None = None
) -> Scores:
    """Accuracy over facts: the right answer against seven others of the same relation ("The capital of France is").

    An item is a fact in one of its relation's wordings; a subject's items are one cluster. Wrong answers are right
    for other subjects of the relation and never for this one. A relation with fewer answers has fewer choices, which
    `chance` accounts for.

    Args:
        source: "built-in" (ours) or "trex" (STUDFINDER_DATA).
        limit: at most so many items, 480 unless told; relations get equal shares.
        seed: draws items and wrong answers.

    Raises:
        StudfinderError: the facts are not there.
    """
    name, found = relations(source)
    questions = [
        fact.asked([fact.answer, *wrong_answers(fact, ANSWERS - 1, generator)])
        for fact, generator in draw_facts(found, _ITEMS if limit is None else limit, seed)
    ]
    return multiple_choice(lm, "facts", questions, name, progress)


def draw_facts(found: tuple[Relation, ...], limit: int, seed: int | str) -> list[tuple[Fact, random.Random]]:
    """So many facts, relation by relation in turn, each with a generator of its own: what is drawn for a fact does
    not depend on how many others there are."""
    queues = []
    for relation in found:
        worded = [(template, *fact) for template in relation.templates for fact in relation.facts]
        random.Random(f"{seed} {relation.name}").shuffle(worded)
        queues.append((relation, worded))
    longest = max((len(worded) for _, worded in queues), default=0)
    facts_ = [Fact(relation, *worded[i]) for i in range(longest) for relation, worded in queues if i < len(worded)]
    return [(fact, random.Random(f"{seed} {fact.template} {fact.subject} {fact.answer}")) for fact in facts_[:limit]]


def wrong_answers(fact: Fact, count: int, generator: random.Random) -> list[str]:
    """Up to `count` answers of the same relation that are not right for the fact's subject."""
    right = fact.relation.objects_of(fact.subject)
    wrong = [answer for answer in fact.relation.objects if answer not in right]
    return generator.sample(wrong, min(count, len(wrong)))

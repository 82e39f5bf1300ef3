"""What a model knows: which of some subjects has which of their answers, as a choice or by yes and no."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from studfinder.errors import NotApplicable
from studfinder.measures.asked import Advance
from studfinder.measures.choices import Square, choice, square_scores, whole
from studfinder.measures.scores import Scores
from studfinder.models import LM
from studfinder.texts import Relation, relations

ANSWERS = 4
_ITEMS = 480

_ASKED = "Statement: {statement}\nThis statement is"
_TRUE, _FALSE = " true", " false"


@dataclass(frozen=True)
class SomeFacts:
    """Facts of one relation in one wording; no answer is right for another one's subject, or stands in its name.

    Attributes:
        facts: (subject, answer).
        draw: of whatever else is drawn for them; depends on the seed and the facts alone.
    """

    relation: Relation
    template: str
    facts: tuple[tuple[str, str], ...]
    draw: random.Random

    @property
    def answers(self) -> tuple[str, ...]:
        """Of the facts, in their order."""
        return tuple(answer for _, answer in self.facts)

    @property
    def cluster(self) -> str:
        """The same for all wordings."""
        return f"{self.relation.name}: {self.facts[0][0]}"

    def said(self, subject: str, answer: str = "") -> str:
        """A sentence about a subject, or its beginning."""
        start = self.template.format(s=subject)
        return f"{start} {answer}." if answer else start

    def asked(self, subjects: list[str], before: str = "") -> Square:
        """Which answer which subject has, after a context."""
        prompts = [before + self.said(subject) for subject in subjects]
        return choice(prompts, self.answers, self.cluster, self.relation.name)


def facts(
    lm: LM, source: str = "built-in", *, limit: int | None = None, seed: int = 0, progress: Advance | None = None
) -> Scores:
    """Accuracy over facts: the right answer against three others of the same relation ("The capital of France is").

    Four facts make a square (see `choices.Square`): each of the four answers is right for one of the four subjects and
    for no other, so that always giving the same answer, or the likelier one, scores exactly 1/4. No answer stands in a
    subject's name. An item is a question; the wordings of a square are one cluster.

    Args:
        source: "built-in" (ours), "trex" (STUDFINDER_DATA), or a domain of it: cities, sports, art, technology,
            celebrities (those of Jin et al. 2025).
        limit: at most so many questions (one square at least), 480 unless told; relations get equal shares.
        seed: draws the squares.

    Raises:
        StudfinderError: the facts are not there.
    """
    name, drawn = draw_facts(source, ANSWERS, whole(limit, ANSWERS, _ITEMS), seed)
    squares = [some.asked([subject for subject, _ in some.facts]) for some in drawn]
    return square_scores(lm, "facts", squares, name, progress)


def yes_no(
    lm: LM, source: str = "built-in", *, limit: int | None = None, seed: int = 0, progress: Advance | None = None
) -> Scores:
    """Accuracy over facts by yes and no: does the model call true statements true rather than false ones?

    Two facts make a square of four statements, two true and two false: each subject comes with both answers, and each
    answer with both subjects. By how much "true" is likelier than "false" after each decides (see `square_scores`), so
    that a liking for "true", or for one of the answers, scores exactly 1/2; small models say "true" to everything.
    Arguments and errors are those of `facts`.
    """
    name, drawn = draw_facts(source, 2, whole(limit, 2, _ITEMS), seed)
    squares = [
        Square(
            tuple(
                tuple((_ASKED.format(statement=some.said(subject, answer)), _TRUE) for answer in some.answers)
                for subject, _ in some.facts
            ),
            some.cluster,
            some.relation.name,
            _FALSE,
        )
        for some in drawn
    ]
    return square_scores(lm, "yes-no", squares, name, progress)


def draw_facts(source: str, size: int, limit: int, seed: int | str) -> tuple[str, list[SomeFacts]]:
    """The source's name, and at most `limit` times `size` facts with different answers, relation by relation in turn.

    All facts come once before any comes in another wording. A relation without so many answers is left out.

    Raises:
        StudfinderError: the source is not there, or none of its relations has so many answers.
    """
    name, found = relations(source)
    queues = []
    for relation in found:
        drawn = list(_apart(relation, size, random.Random(f"{seed} {relation.name}")))
        wordings = len(relation.templates)
        queues.append(
            [
                _worded(relation, relation.templates[(place + turn) % wordings], chosen, seed)
                for turn in range(wordings)
                for place, chosen in enumerate(drawn)
            ]
        )
    if not any(queues):
        raise NotApplicable(f"no relation of {name} has {size} answers", do="Ask for fewer")
    longest = max(map(len, queues))
    return name, [queue[place] for place in range(longest) for queue in queues if place < len(queue)][:limit]


def _worded(relation: Relation, template: str, chosen: tuple[tuple[str, str], ...], seed: int | str) -> SomeFacts:
    return SomeFacts(relation, template, chosen, random.Random(f"{seed} {template} {chosen}"))


def _apart(relation: Relation, size: int, generator: random.Random) -> Iterator[tuple[tuple[str, str], ...]]:
    """So many facts at a time, each subject once, of the answers that are left most often: that makes the most."""
    right: dict[str, set[str]] = {}
    for subject, answer in relation.facts:
        right.setdefault(subject, set()).add(answer)
    left: dict[str, list[str]] = {}
    for subject in generator.sample(sorted(right), len(right)):
        left.setdefault(generator.choice(sorted(right[subject])), []).append(subject)
    while True:
        chosen: list[tuple[str, str]] = []
        for answer in sorted(left, key=lambda answer: (-len(left[answer]), generator.random())):
            others = [other for _, other in chosen]
            fits = (
                subject
                for subject in left[answer]
                if not right[subject] & set(others)
                and not any(answer in right[other] or _names(other, answer) for other, _ in chosen)
                and not any(_names(subject, one) for one in (answer, *others))
            )
            first = next(fits, None)
            if first is not None:
                chosen.append((first, answer))
            if len(chosen) == size:
                break
        else:
            return
        for taken, own in chosen:
            left[own].remove(taken)
        generator.shuffle(chosen)
        yield tuple(chosen)


def _names(subject: str, answer: str) -> bool:
    """Whether a subject's name gives an answer away, as "Nokia 3310" does "Nokia": that would be read, not known."""
    return answer.casefold() in subject.casefold()

"""Told otherwise: does a model answer from the prompt or from what it knows?"""

from __future__ import annotations

from studfinder.measures.asked import Advance, check_items
from studfinder.measures.choices import by_group, per_token
from studfinder.measures.facts import draw_facts, wrong_answers
from studfinder.measures.scores import Scores, scored
from studfinder.models import LM
from studfinder.texts import filler, relations

_ITEMS = 180
BETWEEN = 4


def knowledge_conflict(
    lm: LM,
    source: str = "built-in",
    *,
    between: int = BETWEEN,
    limit: int | None = None,
    seed: int = 0,
    progress: Advance | None = None,
) -> Scores:
    """Share of items answered as the prompt says where it contradicts a known fact.

    The prompt states something false about a real subject ("The capital of France is Oslo."), goes on with
    `between` sentences about something else, and asks in another wording. The model's answer is whichever of the two,
    the stated or the true one, has the higher mean log-probability a token.

    This measures a competition, not an ability: disturbing what is read can raise it or lower it, and so can
    disturbing what is known. `chance` is 1/2, no preference. Items: "score" (1: from the prompt), "margin" (stated
    minus true, nats a token). Details: "known without the statement", the share of the same items where the true
    answer beats the stated one when nothing was stated, and the score by relation.

    Raises:
        StudfinderError: the facts are not there, or no items were asked for.
    """
    name, found = relations(source)
    told, untold = [], []
    for fact, generator in draw_facts(found, _ITEMS if limit is None else limit, seed):
        false = wrong_answers(fact, 1, generator)[0]
        wordings = [template for template in fact.relation.templates if template != fact.template]
        statement = f"{generator.choice(wordings).format(s=fact.subject)} {false}."
        told.append(fact.asked([false, fact.answer], [statement, *generator.sample(filler(), between)]))
        untold.append(fact.asked([false, fact.answer]))
    check_items("knowledge-conflict", told)
    answers, ids = per_token(lm, told, progress)
    margin = [float(stated - true) for stated, true in answers]
    score = [float(value > 0) for value in margin]
    known = [float(true > stated) for stated, true in per_token(lm, untold, progress)[0]]
    return scored(
        "knowledge-conflict",
        score,
        text=f"{name} {ids}",
        chance=0.5,
        clusters=[question.cluster for question in told],
        details={"known without the statement": sum(known) / len(known), **by_group([q.group for q in told], score)},
        correct=score,
        margin=margin,
    )

"""Told otherwise: does a model answer from the prompt or from what it knows?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from studfinder.measures.asked import Advance
from studfinder.measures.choices import choice, evidence, square_scores, whole
from studfinder.measures.facts import draw_facts
from studfinder.measures.scores import Scores
from studfinder.models import LM
from studfinder.texts import filler

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
    the stated or the true one, is more probable. Of two subjects each is told the other's answer.

    This measures a competition, not an ability: disturbing what is read can raise it or lower it, and so can
    disturbing what is known. `chance` is 1/2, no preference. Items: "score" (1: from the prompt), "margin" (stated
    minus true, nats). Details: "known without the statement", the share of the same items where the true answer beats
    the stated one when nothing was stated, and the score by relation.

    Raises:
        StudfinderError: the facts are not there, or no items were asked for.
    """
    name, drawn = draw_facts(source, 2, whole(limit, 2, _ITEMS), seed)
    told, untold = [], []
    for some in drawn:
        false = some.answers[::-1]
        prompts = []
        for (subject, _), answer in zip(some.facts, false, strict=True):
            wording = some.draw.choice([template for template in some.relation.templates if template != some.template])
            beside = some.draw.sample(filler(), between)
            prompts.append(" ".join([f"{wording.format(s=subject)} {answer}.", *beside, some.said(subject)]))
        told.append(choice(prompts, false, some.cluster, some.relation.name))
        untold.append(some.asked([subject for subject, _ in some.facts]))
    scores = square_scores(lm, "knowledge-conflict", told, name, progress)
    known = [value_NN.diagonal() > value_NN[:, ::-1].diagonal() for value_NN in evidence(lm, untold)[0]]
    return replace(scores, details={"known without the statement": float(np.mean(known)), **scores.details})

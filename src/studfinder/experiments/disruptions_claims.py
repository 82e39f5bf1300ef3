"""What the paper claims of disrupted massive values, and the numbers that decide."""

from __future__ import annotations

from studfinder.experiments.disruptions_read import SAME, UNLIKE, DisruptionScores
from studfinder.records import Claim, ClaimResult
from studfinder.stats import crossed
from studfinder.studies import FEWEST, judged

# Table 1, Llama3-8B, shares of the skill above chance: passkeys, GSM8K, AQuA and IMDB lose 95 %, yes-or-no facts 45 %.
_LOST = "Llama3-8B: of the skill above chance, tasks from context lose 95 %, facts 45 %"
_BEYOND = "share lost in context less share lost in memory, less the same under noise elsewhere of equal KL"
_HARMLESS = "share of the skill in context that is kept when each of these dims is held at its mean, less one"

MORE = Claim(
    key="massive-values/context-loses-more",
    says="Disrupting massive values costs tasks that read their prompt more of their skill than questions about facts.",
    decides=_BEYOND,
    published=_LOST,
    paper_effect=0.5,
)
SAME_MORE = Claim(
    key="massive-values/context-loses-more-of-the-same-questions",
    says="The same holds where prompt, answers and wording are one, and a name decides what is asked: read or known.",
    decides=_BEYOND,
    published=f"{_LOST} (other tasks; the same questions were not asked)",
    paper_effect=0.5,
)
KEYS = Claim(
    key="massive-values/passkeys-are-lost",
    says="Disrupting massive values takes the passkey away.",
    decides="share of passkeys found, less the same under noise elsewhere of equal KL",
    kind="less",
    published="Llama3-8B: 100 % to 9 % (128 tokens), to 0 % (256 and 1,024)",
    paper_effect=-0.9,
)
MEMORY = Claim(
    key="massive-values/memory-keeps-most",
    says="Disrupting massive values leaves most of what is known.",
    decides="share of the skill from memory that is kept, less a half",
    published="Llama3-8B: 55 % of the skill above chance in yes-or-no facts",
    paper_effect=0.05,
)
SMALLEST = Claim(
    key="massive-values/smallest-do-no-harm",
    says="As many of the smallest dims do no harm.",
    decides=_HARMLESS,
    kind="within",
    margin=0.1,
    published="Llama3-8B: all tasks within 1 % of the undisrupted model",
    paper_effect=0.0,
)
RANDOM = Claim(
    key="massive-values/random-do-no-harm",
    says="As many random dims do no harm.",
    decides=_HARMLESS,
    kind="within",
    margin=0.1,
    published="the control of its code for Mistral; no numbers",
)
DISRUPTION_CLAIMS = (MORE, SAME_MORE, KEYS, MEMORY, SMALLEST, RANDOM)

_FLOOR = "the model as it is shows no skill above chance there"
_NO_NOISE = "no noise elsewhere was as harmful"
_COST = "studfinder experiment massive-values/disrupt --limit 96, four times the questions: half an hour with smollm2"


def disruption_claims(rows: DisruptionScores, k: int) -> list[ClaimResult]:
    """The claims, of the first count that was disrupted; the controls are of `k` dims a head."""
    name = next(iter(one.label for one in rows.scored.variants[1:]))
    other = rows.against.get(name, "")
    found = []
    for claim, sides in ((MORE, UNLIKE), (SAME_MORE, SAME)):
        number = rows.beyond(name, sides, other) if other else None
        effect, control = (rows.beyond(row, sides) if row else None for row in (name, other))
        why = "" if number else _FLOOR if other else _NO_NOISE
        items = _questions(rows, *sides)
        found.append(judged(claim, number, effect=effect, control=control, items=items, why=why, cost=_COST))
    found.append(_keys(rows, name, other))
    kept = rows.more_kept(name, "memory", 0.5)
    found.append(
        judged(
            MEMORY,
            kept,
            effect=rows.kept(name, "memory"),
            control=rows.kept(other, "memory") if other else None,
            items=_questions(rows, "memory"),
            why="" if kept else _FLOOR,
            cost=_COST,
        )
    )
    for claim, row in ((SMALLEST, f"smallest, k = {k}"), (RANDOM, f"random, k = {k}")):
        kept = rows.more_kept(row, "context", 1.0)
        massive = next(one.label for one in rows.scored.variants if one.label == f"massive, k = {k}")
        found.append(
            judged(
                claim,
                kept,
                effect=rows.kept(row, "context"),
                control=rows.kept(massive, "context"),
                items=_questions(rows, "context"),
                why="" if kept else _FLOOR,
                cost=_COST,
            )
        )
    return found


def _questions(rows: DisruptionScores, *sides: str) -> str:
    measures = [name for side in sides for name in rows.can_show[side]]
    count = sum(len(rows.scored.items(rows.scored.original, name)) for name in measures)
    return f"{count} questions of {len(measures)} measures"


def _keys(rows: DisruptionScores, name: str, other: str) -> ClaimResult:
    """Found under the disruption less found under the noise, paired."""
    if rows.keys is None or not other:
        return judged(KEYS, None, why=_NO_NOISE if rows.keys else "passkeys could not be asked", cost=_COST)
    key, noise = rows.keys.measures[0], rows.keys.labels[-1]
    clean = rows.keys.mean(rows.keys.original, key)
    if clean.low <= 0 or clean.n < FEWEST:
        return judged(KEYS, None, why=_FLOOR, cost=_COST)
    drawn = {label: rows.keys.drawn(label, key) for label in (name, noise)}
    return judged(
        KEYS,
        crossed(lambda mean: mean[name] - mean[noise], drawn, what="passkeys"),
        effect=rows.keys.mean(name, key),
        control=rows.keys.mean(noise, key),
        items=f"{drawn[name].shape[1]} passkeys",
        cost=_COST,
    )

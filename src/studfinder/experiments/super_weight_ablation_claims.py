"""What the paper claims in its table 1, and what the scores of super-weight/ablation say of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from studfinder.records import Claim, ClaimResult
from studfinder.stats import averaged
from studfinder.studies import GridScores, cost_of, judged

WHOLE_MODEL, PRUNED, RESTORED, ELSEWHERE = "original", "prune SW", "prune SW, +SA", "prune SW, +A elsewhere"
LIKE, MANY = "prune others, a like share", "prune others, the paper's number"
_WIKITEXT = 1211.11 / 6.08
LIKE_SHARE = Claim(
    key="super-weight/like-share",
    says="As large a share of other large weights does no comparable harm.",
    decides="perplexity without the super weights over perplexity without a like share of the largest others",
    none=1.0,
    published="Llama-7B, WikiText-2: 1,211 without the super weight, 6.08 without 7,000 others, 5.67 with all",
    paper_effect=_WIKITEXT,
)
MANY_OTHERS = Claim(
    key="super-weight/7000-others",
    says="Even 7,000 of the largest others do no comparable harm.",
    decides="perplexity without the super weights over perplexity without 7,000 of the largest others",
    none=1.0,
    published="Llama-7B, WikiText-2: 1,211 without the super weight, 6.08 without 7,000 others, 5.67 with all",
    paper_effect=_WIKITEXT,
)
GUESSING = Claim(
    key="super-weight/tasks",
    says="Zero-shot accuracy falls towards guessing without it, and not without a like share of others.",
    decides="share of the accuracy above chance that is lost, less the share lost without a like share of others",
    published="Llama-7B, seven tasks: 70.1 to 35.1, where guessing gives 28.6; 69.2 without 7,000 others",
    paper_effect=(69.22 - 35.14) / (70.11 - 28.57),
)
RESTORE = Claim(
    key="super-weight/restore",
    says="Putting the super activation back brings back part of the accuracy.",
    decides="share of the lost accuracy that comes back, less what as large a number elsewhere brings, if anything",
    published="Llama-7B: 42 %; 31 % without two of seven tasks whose cells look copied",
    paper_effect=0.42,
)
RESTORE_LOG = Claim(
    key="super-weight/restore-perplexity",
    says="Putting the super activation back brings back part of the perplexity.",
    decides="share of the lost log perplexity that comes back, less what as large a number elsewhere brings back, if "
    "anything",
    published="Llama-7B, WikiText-2: 10 % of the logarithm (5.67, 1,211 and 721)",
    paper_effect=0.10,
)
TABLE_1 = (LIKE_SHARE, MANY_OTHERS, GUESSING, RESTORE, RESTORE_LOG)

_Parts = Sequence[np.ndarray]
"""One number an item, by task."""


def claims_of(scored: GridScores, own: Any) -> list[ClaimResult]:
    """Each claim judged; perplexity is that of the first text, accuracy that of the tasks in which the model is above
    chance before anything is cut."""
    texts = [name for name in scored.measures if name not in scored.tasks]
    tasks = [name for name in scored.tasks if scored.scores[WHOLE_MODEL][name].details.get("headroom", 1.0)]

    def cost(claim: Claim, number: Any, names: Sequence[str], setting: str, have: int) -> str:
        return cost_of(claim, number, setting, have, sum(of[name] for of in scored.seconds.values() for name in names))

    def perplexity(claim: Claim, control: str) -> ClaimResult:
        if not texts:
            return judged(claim, None, why="no perplexity was measured")
        number = scored.change(texts[0], PRUNED, control)
        pair = [scored.change(texts[0], label) for label in (PRUNED, control)]
        assert number is not None
        return judged(
            claim,
            number,
            effect=pair[0],
            control=pair[1],
            items=f"{number.interval.n} windows of {texts[0].partition(':')[2]}",
            cost=cost(claim, number, texts[:1], "--set windows=", own.windows),
        )

    def share(claim: Claim, effect: _Parts, control: _Parts, of: _Parts, *costs: Any, why: str = "") -> ClaimResult:
        if not of or averaged(of).low <= 0:
            return judged(claim, None, why=why, cost=f"another model, or `{costs[1]}{4 * costs[2]}`")
        beside = averaged(control, of)
        # A control that works the other way would make the contrast larger than the effect.
        counted = control if beside.value > 0 else [0 * part for part in control]
        number = averaged([a - b for a, b in zip(effect, counted, strict=True)], of)
        names = ", ".join(name.partition(":")[2] for name in costs[0])
        return judged(
            claim,
            number,
            effect=averaged(effect, of),
            control=beside,
            items=f"{number.n} {'items' if 'tasks:' in costs[0][0] else 'windows'} of {names}",
            cost=cost(claim, number, *costs),
        )

    def less(label: str, names: Sequence[str], item: str = "score", than: str = WHOLE_MODEL) -> list[np.ndarray]:
        return [scored.items(than, name, item) - scored.items(label, name, item) for name in names]

    room = [scored.items(WHOLE_MODEL, name) - (scored.scores[WHOLE_MODEL][name].chance or 0.0) for name in tasks]
    items, windows = (tasks, "--limit ", own.limit), (texts[:1], "--set windows=", own.windows)
    found = [
        perplexity(LIKE_SHARE, LIKE),
        perplexity(MANY_OTHERS, MANY),
        share(GUESSING, less(PRUNED, tasks), less(LIKE, tasks), room, *items, why="the model is at chance everywhere"),
    ]
    if RESTORED not in scored.labels:
        return [*found, *(judged(one, None, why="a fused expert's output cannot be replaced") for one in TABLE_1[3:])]
    back = [[-part for part in less(label, tasks, than=PRUNED)] for label in (RESTORED, ELSEWHERE)]
    logs = [less(label, texts[:1], "nll", than=PRUNED) for label in (RESTORED, ELSEWHERE)]
    lost = [-part for part in less(PRUNED, texts[:1], "nll")]
    return [
        *found,
        share(RESTORE, *back, less(PRUNED, tasks), *items, why="pruning took no accuracy that these items show"),
        share(RESTORE_LOG, *logs, lost, *windows, why="pruning took no perplexity that these windows show"),
    ]

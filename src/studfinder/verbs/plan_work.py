"""What a plan will take, said before it starts."""

from __future__ import annotations

import time

import torch

from studfinder.passes import carry
from studfinder.report.words import count
from studfinder.texts import batches
from studfinder.verbs.plan import PlanReady

_PER_BACKWARD = 3.5
"""A backward pass in passes forward: the forward one, the block run again, and its gradient."""
_OTHERS = 12
"""About so many other choices a plan is judged beside."""
_CORRECTED = 24
"""About so many readings of the choosing text correct it."""


def workload(ready: PlanReady) -> str:
    """Groups, formats, passes and about how long: from one window that is read once."""
    config, text = ready.config, ready.text
    groups = len({target.fused for target in ready.found})
    choosing, judging = (sum(map(len, windows)) for windows in (text.choosing, text.judging))
    readings = 0.0 if config.earlier is not None else _PER_BACKWARD * config.draws
    readings += _CORRECTED * (config.score == "auto")
    if config.score == "measured":
        readings += groups * sum(len(names) for names in ready.tools.values()) / 2
    tokens = choosing * readings + judging * _OTHERS * len(ready.tools)
    minutes = tokens * _seconds_a_token(ready) / 60
    return (
        f"planning {count(groups, 'fused group')} in {len(ready.formats)} formats at {ready.budget}: "
        f"{choosing:,} tokens choose, {judging:,} judge; about {count(max(1, round(minutes)), 'minute')}"
    )


def _seconds_a_token(ready: PlanReady) -> float:
    window = max(ready.text.choosing, key=lambda ids: len(ids))[:128]
    whole = list(batches([window]))
    seconds = []
    with torch.no_grad():
        for _ in range(2):  # the first time also rehearses the blocks
            began = time.monotonic()
            for _ends in carry(ready.lm, whole):
                pass
            seconds.append(time.monotonic() - began)
    return min(seconds) / len(window)

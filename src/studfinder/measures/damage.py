"""Damage-matched controls: other edits, made exactly as strong as it takes to hurt neutral text as much.

That an edit ruins one task shows little while it ruins everything: only an edit that costs the same on neutral text and
leaves the task alone shows that the effect is specific.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from studfinder.edits import Edit
from studfinder.errors import StudfinderError
from studfinder.measures.effects import Effects, effects_of
from studfinder.models import LM
from studfinder.records import Interval

_STEP = 4.0
"""By how much strengths move until two of them enclose the target."""
_UNDAMAGED = 1e-6
"""KL in nats per token that fp32 rounding can make: below it there is no damage to match."""


@dataclass(frozen=True, kw_only=True)
class DamageMatch:
    """The member of a family of edits that is as harmful on neutral text as given ones.

    Attributes:
        edits: the member.
        strength: what it was made with.
        kl: its KL(clean || edited) in nats per token, with an interval over windows.
        target: that of the given edits, on the same windows.
        difference: kl less target, window by window.
        matched: whether kl is within the tolerance; if not, the target was out of reach and this came nearest.
        tried: every strength and its KL, in order.
    """

    edits: tuple[Edit, ...]
    strength: float
    kl: Interval
    target: Interval
    difference: Interval
    matched: bool
    tried: tuple[tuple[float, float], ...]


def damage_matched(
    lm: LM,
    encoded: Sequence[Sequence[int]],
    edits: Sequence[Edit],
    make: Callable[[float], Sequence[Edit]],
    *,
    start: float = 1.0,
    tolerance: float = 0.05,
    evaluations: int = 12,
) -> DamageMatch:
    """Find the strength at which a family of edits does the damage of given ones, by bisection of its logarithm.

    Args:
        encoded: windows of token ids of neutral text; not the items that the edits are judged on afterwards.
        edits: whose damage is to be matched.
        make: the family, harmful in proportion to its positive strength, e.g.
            `lambda std: noise(dims(lm, select=RandomDims(1)), std)`.
        start: the first strength.
        tolerance: how near is near enough, relative to the target's KL.
        evaluations: at most so many strengths.

    Raises:
        StudfinderError: the given edits do no damage that could be matched, or an argument is not positive.
    """
    if not (start > 0 and tolerance > 0 and evaluations > 0):
        raise StudfinderError("start, tolerance and evaluations of a damage match", expected="numbers above 0")
    first = effects_of(lm, encoded, [edits, make(start)])
    goal = first.kl_interval(0)
    if not _UNDAMAGED < goal.value < math.inf:
        raise StudfinderError(
            f"the edits' KL on this text is {goal.value:.1e} nats per token, so there is no damage to match"
        )
    tried = {start: (first, 1)}
    strength = start
    while len(tried) < evaluations and not _near(_kl(*tried[strength]), goal.value, tolerance):
        strength = _next({s: _kl(*seen) for s, seen in tried.items()}, goal.value)
        if strength in tried or not 1e-9 < strength < 1e9:
            break
        tried[strength] = (effects_of(lm, encoded, [make(strength)]), 0)
    best = min(tried, key=lambda s: abs(math.log(max(_kl(*tried[s]), _UNDAMAGED) / goal.value)))
    found, number = tried[best]
    paired = Effects(
        np.stack([first.kl[0], found.kl[number]]),
        np.stack([first.nll[0], found.nll[number]]),
        first.clean_nll,
        first.tokens,
    )
    return DamageMatch(
        edits=tuple(make(best)),
        strength=best,
        kl=paired.kl_interval(1),
        target=goal,
        difference=paired.kl_interval(1, minus=0),
        matched=_near(_kl(found, number), goal.value, tolerance),
        tried=tuple((s, _kl(*seen)) for s, seen in tried.items()),
    )


def _kl(found: Effects, number: int) -> float:
    return float(found.kl[number].sum() / found.tokens.sum())


def _near(kl: float, goal: float, tolerance: float) -> bool:
    return abs(kl - goal) <= tolerance * goal


def _next(kl: dict[float, float], goal: float) -> float:
    """The next strength to try: beyond the tried ones until two enclose the goal, then between the nearest two.

    Between them the line through both in log KL over log strength is followed, but never to the outer tenths, so that
    the bracket shrinks whatever the curve's shape.
    """
    below = [s for s in kl if kl[s] < goal]
    above = [s for s in kl if kl[s] >= goal]
    if not above:
        return max(kl) * _STEP
    if not below:
        return min(kl) / _STEP
    high = min((s for s in above if s > min(below)), default=None)
    if high is None:  # stronger is less harmful all the way: nothing to follow
        return max(kl) * _STEP
    low = max(s for s in below if s < high)
    rise = math.log(kl[high] / max(kl[low], _UNDAMAGED))
    share = math.log(goal / max(kl[low], _UNDAMAGED)) / rise if rise > 0 and math.isfinite(rise) else 0.5
    return low * (high / low) ** min(0.9, max(0.1, share))

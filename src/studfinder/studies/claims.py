"""Whether a claim held, by one interval and nothing else."""

from __future__ import annotations

import math

from studfinder.records import Claim, ClaimResult, Comparison, Decision, Interval

Shown = Interval | Comparison | float | str | None


def judged(
    claim: Claim,
    number: Interval | Comparison | None,
    *,
    effect: Shown = None,
    control: Shown = None,
    items: str = "",
    why: str = "",
    cost: str = "",
) -> ClaimResult:
    """What a number says of a claim.

    A claim of "more" (or "less") held if the whole interval lies above (below) `claim.none`. It did not hold if the
    whole interval lies on the other side, or if it includes `none` and leaves out the paper's own effect. A claim of
    "within" held if the interval keeps within the margin, and did not if it lies wholly outside. All else is not
    decided, and so is an interval without width at `none`: no item changed.

    Args:
        number: the contrast that decides; None where it could not be measured (say in `why` why).
        effect, control: what it contrasts.
        items, why, cost: see `ClaimResult`.
    """
    interval = number.interval if isinstance(number, Comparison) else number
    return ClaimResult(
        claim=claim,
        verdict="not decided" if interval is None else _verdict(claim, interval),
        number=interval,
        effect=effect,
        control=control,
        smallest=None if interval is None else _smallest(claim, interval),
        items=items,
        why=why,
        cost=cost,
    )


def _verdict(claim: Claim, interval: Interval) -> Decision:
    low, value, high = (_placed(claim, one) for one in (interval.low, interval.value, interval.high))
    if not low <= value <= high or low == high == 0:
        return "not decided"  # NaN, or no item changed: resampling then says nothing of the next one
    if claim.margin is not None:
        margin = abs(_placed(claim, claim.margin))
        if -margin <= low and high <= margin:
            return "held"
        return "did not hold" if low > margin or high < -margin else "not decided"
    if claim.kind == "less":
        low, high = -high, -low
    if low > 0:
        return "held"
    if high < 0:
        return "did not hold"
    if claim.paper_effect is None:
        return "not decided"
    paper = _placed(claim, claim.paper_effect) * (-1 if claim.kind == "less" else 1)
    return "did not hold" if high < paper else "not decided"


def _smallest(claim: Claim, interval: Interval) -> float | None:
    """Half the interval: a true difference below it would as a rule leave `none` inside."""
    low, high = _placed(claim, interval.low), _placed(claim, interval.high)
    if not low < high or math.isinf(high - low):
        return None
    return math.exp((high - low) / 2) if claim.none else (high - low) / 2


def _placed(claim: Claim, value: float) -> float:
    """How far a value is from `none`; of ratios, its logarithm."""
    if not claim.none:
        return value
    return math.log(value / claim.none) if value > 0 else -math.inf if value == 0 else math.nan


def cost_of(claim: Claim, number: Interval | Comparison | None, setting: str, have: int, seconds: float) -> str:
    """Which run would decide a claim: with so many items that half the interval is as wide as the paper's effect is far
    from `claim.none`; "" where that cannot be said.

    Args:
        setting: what sets the number of items, as it stands before it, e.g. "--limit ".
        have: how many there were.
        seconds: how long those took.
    """
    interval = number.interval if isinstance(number, Comparison) else number
    if interval is None or claim.paper_effect is None:
        return ""
    half = (_placed(claim, interval.high) - _placed(claim, interval.low)) / 2
    far = abs(_placed(claim, claim.paper_effect))
    if not (far > 0 and math.isfinite(half / far)):
        return ""
    want = max(have + 1, math.ceil(have * (half / far) ** 2))
    hours = seconds * want / have / 3600
    took = f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"
    return f"`{setting}{want}` where the data has as many, about {took} at the pace of this run"

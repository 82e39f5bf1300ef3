"""The rule of the proof as functions of numbers: what is left after a look at a few windows, and what the verdict is.

Sums are KL summed over each window's tokens, of the windows looked at so far.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from typing import TypeVar

import numpy as np

from studfinder.records import Interval
from studfinder.records.numbers import Verdict
from studfinder.stats import ratio_interval, student_interval

FLOOR = 0.01
CONTROLS = 20
MOST = 24
"""Candidates tested, the likeliest first; the proof of a long list of look-alikes would take hours on a large model."""
POOLS = 64
"""Pools of all other numbers that are measured."""
LOOKS = (2, 4, 8, 16)
"""Windows seen when something may be left; the last are all."""
VERSION = 3
"""Raised when the same model may get other numbers or verdicts."""

Key = TypeVar("Key", bound=Hashable)


def bounds(sums: np.ndarray, tokens: np.ndarray, tests: int, *, exponential: bool = False) -> Interval:
    """The interval of sum(sums) / sum(tokens) that holds for so many tests at once.

    A bootstrap of a few windows is too narrow, so where not all were looked at it is Student's t, which takes the
    windows for normal. Skewed ones (a weight that matters in one window of ten) make its upper bound too low now and
    then: `benchmarks/proof_null.py` counts how often that ever let a control go that mattered.
    """
    method = ratio_interval if len(sums) >= LOOKS[-1] else student_interval
    return method(sums, tokens[: len(sums)], level=1 - 0.05 / max(1, tests), exponential=exponential)


def early(tested: int) -> int:
    """Tests made at all looks but the last."""
    return tested * (len(LOOKS) - 1)


def does_nothing(sums: np.ndarray, tokens: np.ndarray, floor: float, tested: int) -> bool:
    """Whether a change does nothing that matters, at an early look."""
    return bounds(sums, tokens, early(tested)).high < floor


def still_open(sums: Mapping[Key, np.ndarray], tokens: np.ndarray, needed: float, tested: int) -> list[Key]:
    """Which controls are to be looked at further, at an early look.

    Args:
        sums: of each control that is open.
        needed: what the largest would have to reach to stand against the candidate: the candidate's lower bound.
    """
    seen = {key: bounds(one, tokens, early(tested) * CONTROLS) for key, one in sums.items()}
    above = [key for key in seen if seen[key].low >= needed]
    if above:
        return [max(above, key=lambda key: seen[key].low)]
    largest = max(seen, key=lambda key: np.nan_to_num(seen[key].value, nan=np.inf))
    return [key for key in seen if key == largest or not seen[key].high < needed]


def stands_out(low: float, controls: Collection[float], floor: float) -> bool:
    """Whether a lower bound exceeds the floor and every control. What is NaN is exceeded by nothing."""
    return bool(controls) and low > floor and all(low > control for control in controls)


def verdict_of(
    alone: Interval, controls: Collection[float], marginal: Interval | None, others: Collection[float], floor: float
) -> Verdict:
    """The verdict.

    Args:
        alone, controls: the KL of the candidate, and of each control; none where it was not held against them.
        marginal, others: its share of the set, None if it was not measured, and the controls' shares in its place.
    """
    if stands_out(alone.low, controls, floor):
        return "proven"
    if marginal is not None and stands_out(marginal.low, others, floor):
        return "proven-jointly"
    return "inert" if alone.high < floor and (marginal is None or marginal.high < floor) else "candidate"

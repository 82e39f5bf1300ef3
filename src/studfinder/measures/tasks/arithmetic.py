"""Sums after five examples, as hard as the clean model can just about do.

Two numbers below a bound are added; the bound is the difficulty. It is tuned once, on the clean model and on sums that
are never scored, and then belongs to the task's name (`arithmetic:100`), so that the edited model gets the same items.
"""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

import numpy as np
from torch import nn

from studfinder.errors import StudfinderError
from studfinder.models import LM

BOUNDS = (10, 12, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000, 2000, 5000, 10_000, 100_000, 1_000_000)
"""Difficulties that tuning tries."""

_EXAMPLES = 5
DEFAULT_ITEMS = 200
_ENOUGH = 0.6
_TUNED: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def sums(bound: int, count: int, seed: int, *, for_tuning: bool = False) -> list[dict[str, str]]:
    """At most `count` different sums of two numbers below `bound`, each after the same five examples.

    Half of all pairs are for tuning and half are scored; a pair is never in both halves, nor scored when it is an
    example.

    Returns:
        One {"context", "completion"} a sum; the wording is that of lm-eval's arithmetic tasks.

    Raises:
        StudfinderError: a bound so small that there are not enough pairs.
    """
    if bound < BOUNDS[0]:
        raise StudfinderError(f"arithmetic:{bound}", expected=f"a bound of at least {BOUNDS[0]}")
    random = np.random.default_rng([seed, bound, int(for_tuning)])
    pairs: dict[tuple[int, int], None] = {}
    wanted = min(count + _EXAMPLES, (bound * bound - 1) // 2)
    while len(pairs) < wanted:
        first, second = (int(number) for number in random.integers(0, bound, 2))
        if (first * bound + second) % 2 == int(for_tuning):
            pairs[first, second] = None
    examples, scored = list(pairs)[:_EXAMPLES], list(pairs)[_EXAMPLES:]
    shown = "\n\n".join(_question(pair) + f" {sum(pair)}" for pair in examples)
    return [{"context": f"{shown}\n\n{_question(pair)}", "completion": f" {sum(pair)}"} for pair in scored]


def tuned_bound(lm: LM, accuracy: Callable[[int], float], untouched: Callable[[], bool]) -> int:
    """The largest difficulty at which the model is right in at least 60 % of the tuning sums (the smallest there is,
    if it never is). Remembered for the live model, so that a later run with edits gets the same one.

    Args:
        accuracy: of the model on tuning sums below a bound.
        untouched: whether the model is known to be clean now.

    Raises:
        StudfinderError: the difficulty is not known yet and the model is being edited.
    """
    if lm.model not in _TUNED:
        if not untouched():
            raise StudfinderError(
                "the difficulty of arithmetic is tuned on the clean model, and this one is being edited",
                do="Measure the clean model first, or name the difficulty, e.g. arithmetic:100",
            )
        _TUNED[lm.model] = _search(accuracy)
    return _TUNED[lm.model]


def _search(accuracy: Callable[[int], float]) -> int:
    """By bisection: accuracy falls as numbers grow."""
    low, high = 0, len(BOUNDS)
    while high - low > 1:
        middle = (low + high) // 2
        if accuracy(BOUNDS[middle]) >= _ENOUGH:
            low = middle
        else:
            high = middle
    return BOUNDS[low]


def _question(pair: tuple[int, int]) -> str:
    return f"Question: What is {pair[0]} plus {pair[1]}?\nAnswer:"

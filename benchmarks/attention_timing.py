"""Two callables by turns, one ratio: needs torch only, since it also runs in the peers' environments."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from statistics import median

import torch


def seconds(run: Callable[[], None]) -> float:
    """CPU time of one thread, or wall time of several."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    run()
    return clock() - start


def paired_ratio(
    base: Callable[[], None], variant: Callable[[], None], rounds: int, *, balanced: bool = False
) -> dict[str, float]:
    """The median of paired ratios, its 90 % bootstrap interval, and the base's median seconds.

    Which of the two goes first changes from pair to pair: the second finds its own weights out of the caches. Where a
    pass is so short that this is a tenth of it, `balanced` takes the geometric mean of two neighbouring pairs for one.
    """
    base(), variant()
    pairs = []
    for turn in range(rounds):
        if turn % 2:
            late = seconds(variant)
            pairs.append((seconds(base), late))
        else:
            pairs.append((seconds(base), seconds(variant)))
    ratios = [b / a for a, b in pairs]
    if balanced:
        ratios = [(one * other) ** 0.5 for one, other in zip(ratios[::2], ratios[1::2], strict=False)]
    draw = random.Random(0)
    medians = sorted(median(draw.choices(ratios, k=len(ratios))) for _ in range(2000))
    return {
        "ratio": median(ratios),
        "low": medians[100],
        "high": medians[1899],
        "pairs": rounds,
        "base_seconds": median(a for a, _ in pairs),
    }

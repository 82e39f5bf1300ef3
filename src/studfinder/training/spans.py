"""Spans that come twice: they make a small model copy, and so do nothing where there is nothing to copy."""

from __future__ import annotations

import numpy as np


def with_repeat(tokens_T: np.ndarray, least: int, random: np.random.Generator) -> np.ndarray:
    """A window with a span of it, `least` to twice as many tokens, copied over a later one that does not overlap."""
    length = len(tokens_T)
    span = int(random.integers(least, 2 * least + 1))
    start = int(random.integers(0, length - 2 * span + 1))
    there = int(random.integers(start + span, length - span + 1))
    copied_T = tokens_T.copy()
    copied_T[there : there + span] = tokens_T[start : start + span]
    return copied_T

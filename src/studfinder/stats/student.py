"""Student's t: how far a mean of a few values may be off."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)


@cache
def student_t(freedom: int, level: float = 0.95) -> float:
    """The t that |T| stays below with probability `level`: 12.71, 4.30, 3.18, ... for 0.95.

    With T = sqrt(freedom) tan(angle) the density of the angle is proportional to cos(angle)^(freedom - 1), which has no
    tail to cut off. Right to ten digits up to 10,000 degrees of freedom.

    Raises:
        ValueError: no degree of freedom, or a level outside (0, 1).
    """
    if freedom < 1 or not 0 < level < 1:
        raise ValueError(f"Student's t with {freedom} degrees of freedom at level {level}")
    whole = _mass(math.pi / 2, freedom)
    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _mass(middle, freedom) < level * whole else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _mass(angle: float, freedom: int) -> float:
    """The integral of cos^(freedom - 1) from 0 to an angle, by Gauss and Legendre."""
    angles = angle / 2 * (_NODES + 1)
    return float(angle / 2 * (_WEIGHTS * np.cos(angles) ** (freedom - 1)).sum())

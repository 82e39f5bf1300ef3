"""A format for every fused group at the least predicted cost within a budget: a multiple-choice knapsack, exactly.

It is handed to scipy's mixed-integer programme (HiGHS), which says how far from the optimum its answer may be.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from studfinder.errors import StudfinderError

_GAP = 1e-6
_SECONDS = 60.0
_SLACK = 1e-9


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen.

    Attributes:
        formats: by group, the name of its format.
        size: of all together, in bits.
        cost: of all together, in nats per token.
        gap: the optimum is better by at most this share.
    """

    formats: dict[str, str]
    size: float
    cost: float
    gap: float


_Table = Mapping[str, Mapping[str, float]]
"""A number by group and format."""


def cheapest(costs: _Table, sizes: _Table, *, size: float | None = None, cost: float | None = None) -> Choice:
    """Choose a format for every group.

    Args:
        costs: nats per token by group and format.
        sizes: bits, of the same.
        size: the least cost within so many bits.
        cost: the fewest bits within so many nats. One of both is given.

    Raises:
        StudfinderError: nothing fits: says what the least is.
    """
    assert (size is None) != (cost is None), "one budget"
    pairs = [(group, name) for group, own in costs.items() for name in own]
    cost_P = np.array([costs[group][name] for group, name in pairs])
    size_P = np.array([sizes[group][name] for group, name in pairs])
    aim, held, most = (cost_P, size_P, size) if size is not None else (size_P, cost_P, cost)
    assert most is not None
    least = sum(min(held[place] for place in places) for places in _places(pairs).values())
    if least > most * (1 + _SLACK) + _SLACK:
        raise StudfinderError(
            f"no choice of formats fits: the least is {least:.6g}", expected=f"a budget of that or more, not {most:.6g}"
        )
    chosen, gap = _solved(pairs, aim, held, max(most, least))
    formats = {pairs[place][0]: pairs[place][1] for place in chosen}
    return Choice(formats=formats, size=float(size_P[chosen].sum()), cost=float(cost_P[chosen].sum()), gap=gap)


def _places(pairs: list[tuple[str, str]]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for place, (group, _) in enumerate(pairs):
        places.setdefault(group, []).append(place)
    return places


def _solved(pairs: list[tuple[str, str]], aim: np.ndarray, held: np.ndarray, most: float) -> tuple[list[int], float]:
    """Which pairs, one of each group, and the gap."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    groups = list(_places(pairs).values())
    row = np.repeat(np.arange(len(groups)), [len(places) for places in groups])
    one = csr_array((np.ones(len(row)), (row, np.concatenate(groups))), shape=(len(groups), len(pairs)))
    unit, scale = max(held.max(), 1e-300), max(aim.max(), 1e-300)  # numbers of size 1, whatever nats and bits are
    within = LinearConstraint(held[None] / unit, -np.inf, most / unit * (1 + _SLACK))
    with _quiet():
        found = milp(
            aim / scale,
            constraints=[LinearConstraint(one, 1, 1), within],
            integrality=np.ones(len(pairs)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": _GAP, "time_limit": _SECONDS},
        )
    if found.x is None:
        raise StudfinderError(f"the solver found no plan ({found.message})", do="Say fewer --formats")
    chosen = [max(places, key=lambda place: found.x[place]) for places in groups]
    return chosen, float(found.mip_gap or 0.0)


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of what the solver's library writes to standard output by itself comes between ours: some lines of HiGHS
    no option turns off."""
    try:
        own = os.dup(1)
    except OSError:  # there is none
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(own, 1)
        os.close(own)
        os.close(nowhere)

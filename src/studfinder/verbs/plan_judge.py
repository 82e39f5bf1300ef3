"""A plan beside what anybody would do without it: one format for all, simple rules, groups at random; at equal bits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from studfinder.edits import null, stream_of, zero
from studfinder.passes import Stream
from studfinder.records import UNTOUCHED, GroupCosts, Interval, Rival, format_named
from studfinder.verbs.plan_measure import Bed, Judged, kls_of

_CLOSE = 0.01
"""Bits a weight to which plans count as of equal size."""
_ROOM = 0.1
"""Bits a weight that a rule needs to spend."""
_UNIFORM = 4
"""Uniform formats that a plan is held against, the nearest below its bits."""
_KEEPING = 2
"""Of those that keep numbers, besides."""
_DRAWS = 3
_FEW = 1
"""Of each kind, with a method that is calibrated anew for every choice."""
_PLAN, _NULL, _RANDOM = "the plan", "null edit", "random groups"


@dataclass(frozen=True)
class PlanJudgement:
    """A plan's KL, that of its rivals, whether it is shown to be better, and that in words."""

    kl: Interval
    rivals: tuple[Rival, ...]
    better: bool
    verdict: str


@dataclass(frozen=True)
class _Entrant:
    """Another choice of formats: by group, and what it comes to in bits a weight."""

    kind: Literal["uniform", "rule", "random"]
    formats: dict[str, str]
    bits: float


def judged_plan(
    bed: Bed,
    groups: Sequence[GroupCosts],
    names: Sequence[str],
    windows: Sequence[Sequence[int]],
    plan: Mapping[str, str],
    bits: float,
    seed: int,
) -> PlanJudgement:
    """Hold a plan against others on text that chose nothing.

    Args:
        names: the formats that might be chosen: rivals are made of them too.
        windows: the judging text.
        plan: format by group.
        bits: a weight, of the plan.
    """
    rivals = _entrants(groups, names, bits, seed, _writing(bed), few=bool(bed.windows))
    variants = {_PLAN: dict(plan)} | {label: one.formats for label, one in rivals.items()}
    nulls: dict[str, Callable[[], Stream]] = {_NULL: partial(_nothing, bed, seed)}
    seen = kls_of(bed, "judging", windows, variants, nulls)
    found = [_rival(seen, label, one.kind, one.bits) for label, one in rivals.items() if one.kind != "random"]
    draws = [label for label, one in rivals.items() if one.kind == "random"]
    if draws:
        kl, less = seen.mean(draws), seen.mean(draws, minus=_PLAN)
        mean = float(np.mean([rivals[label].bits for label in draws]))
        name = f"{_RANDOM}, {len(draws)} draws"
        found.append(Rival(name=name, kind="random", bits=mean, kl=kl, less=less))
    found.append(_rival(seen, _NULL, "null", bits))
    better, words = _verdict(seen.kl(_PLAN), found, bits, len(set(plan.values())) == 1)
    return PlanJudgement(seen.kl(_PLAN), tuple(found), better, words)


def _rival(seen: Judged, label: str, kind: Any, bits: float) -> Rival:
    return Rival(name=label, kind=kind, bits=bits, kl=seen.kl(label), less=seen.kl(label, minus=_PLAN))


def _nothing(bed: Bed, seed: int) -> Stream:
    """Every number that is planned moved to a neighbour in its dtype."""
    return stream_of(bed.lm, null(zero([target.entries(bed.lm) for target in bed.found]), seed))


def _verdict(kl: Interval, rivals: Sequence[Rival], bits: float, same: bool) -> tuple[bool, str]:
    held = [one for one in rivals if one.kind in ("uniform", "random") and one.bits <= bits + _CLOSE]
    if same:
        return False, "the plan is one format for all: there is nothing to gain at these bits."
    if not held:
        return False, "no other choice costs so little: there is nothing to hold the plan against."
    best = min(held, key=lambda one: one.kl.value)
    if kl.n < 2:
        return False, "one window is too few to judge by."
    if all(one.less.low > 0 for one in held):
        return True, (
            f"the plan costs {best.less} nats per token less than the best other that costs no more bits "
            f"({best.name}, {best.bits:.4g} bits)."
        )
    uniform = [one for one in held if one.kind == "uniform"]
    instead = f" Use {min(uniform, key=lambda one: one.kl.value).name} for all instead." if uniform else ""
    return False, (
        f"the plan is not shown to be better than {best.name} at {best.bits:.4g} bits (by {best.less} nats per token)."
        + instead
    )


# --- the others -----------------------------------------------------------------------------------------------------


def _writing(bed: Bed) -> set[str]:
    """Groups that hold what writes a feed-forward block's output into the residual stream."""
    writers = {writer.parameter for layer in bed.lm.anatomy.layers for writer in layer.writers}
    return {target.fused for target in bed.found if target.ref.parameter in writers}


def _entrants(
    groups: Sequence[GroupCosts], names: Sequence[str], bits: float, seed: int, writing: set[str], *, few: bool
) -> dict[str, _Entrant]:
    """By name. Rules and random groups are made of formats that keep nothing: which numbers are kept is predicted."""
    every = {name: one for name in names if name != UNTOUCHED and (one := _for_all(groups, name, names)) is not None}
    below = sorted((name for name in every if every[name].bits <= bits + _CLOSE), key=lambda name: -every[name].bits)
    plain = {name: one for name, one in every.items() if not format_named(name).kept}
    keeping = [name for name in below if format_named(name).kept][: _FEW if few else _KEEPING]
    uniform = [one for one in below if one in plain][: _FEW if few else _UNIFORM]
    found = {f"all {name}": every[name] for name in [*uniform, *keeping]}
    costs = {name: _cost(groups, one.formats) for name, one in plain.items()}
    bases = [name for name, one in plain.items() if one.bits <= bits - _ROOM]
    if not bases:
        return found
    base = min(bases, key=lambda name: costs[name])
    better = [name for name, one in plain.items() if one.bits > bits and costs[name] < 0.1 * costs[base]]
    if not better:
        return found
    best = min(better, key=lambda name: plain[name].bits)
    most = bits * sum(group.weights for group in groups)
    for label, order in _rules(groups, writing).items():
        formats = _spent(groups, order, plain[base].formats, plain[best].formats, most)
        found[f"{label} in {best}, else {base}"] = _Entrant("rule", formats, _bits(groups, formats))
    random = np.random.default_rng(seed)
    for draw in range(_FEW if few else _DRAWS):
        order = [groups[place] for place in random.permutation(len(groups))]
        formats = _spent(groups, order, plain[base].formats, plain[best].formats, most)
        found[f"{_RANDOM}, draw {draw + 1}"] = _Entrant("random", formats, _bits(groups, formats))
    return found


def _for_all(groups: Sequence[GroupCosts], name: str, names: Sequence[str]) -> _Entrant | None:
    """One format for all; where it does not fit, the cheapest that fits and costs no fewer bits. None if it fits less
    than half of the numbers."""
    own = {one.name: {cost.stored_as: cost.bits for cost in one.costs if cost.stored_as in names} for one in groups}
    fits = [group for group in groups if name in own[group.name]]
    if 2 * sum(group.weights for group in fits) < sum(group.weights for group in groups):
        return None
    rate = fits[0].cost(name).bits
    formats = {}
    for group in groups:
        able = own[group.name]
        others = [one for one, bits in able.items() if not format_named(one).kept and bits >= rate]
        formats[group.name] = name if name in able else min(others, key=able.__getitem__, default=UNTOUCHED)
    if any(formats[group.name] not in own[group.name] for group in groups):
        return None
    return _Entrant("uniform", formats, _bits(groups, formats))


def _cost(groups: Sequence[GroupCosts], formats: Mapping[str, str]) -> float:
    return sum(group.cost(formats[group.name]).kl for group in groups)


def _rules(groups: Sequence[GroupCosts], writing: set[str]) -> dict[str, list[GroupCosts]]:
    """Which groups come first."""
    last = max(group.layer for group in groups)
    down = [group for group in groups if group.name in writing]
    ends = sorted(groups, key=lambda group: min(group.layer, last - group.layer))
    return {"first and last layers": ends, **({"down projections, deepest first": down[::-1]} if down else {})}


def _spent(
    groups: Sequence[GroupCosts],
    order: Iterable[GroupCosts],
    base: Mapping[str, str],
    best: Mapping[str, str],
    most: float,
) -> dict[str, str]:
    """All in one format, and the first of an order in a better one until the bits are spent."""
    formats = dict(base)
    size = sum(group.cost(formats[group.name]).bits * group.weights for group in groups)
    for group in order:
        more = (group.cost(best[group.name]).bits - group.cost(formats[group.name]).bits) * group.weights
        if size + more <= most:
            formats[group.name] = best[group.name]
            size += more
    return formats


def _bits(groups: Sequence[GroupCosts], formats: Mapping[str, str]) -> float:
    size = sum(group.cost(formats[group.name]).bits * group.weights for group in groups)
    return size / sum(group.weights for group in groups)

"""From costs to a choice of formats, corrected where damages do not add up.

Everything here looks at the choosing text only. A group's predicted costs are multiplied by one factor: what was
measured of it over what was predicted, of the group alone where its two predictions differ, and of putting it back into
the rounded model where the whole is not what its parts come to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from studfinder.errors import StudfinderError
from studfinder.quantizers.budget import Choice, cheapest
from studfinder.records import GroupCosts
from studfinder.records.scheme import format_named
from studfinder.report.words import count
from studfinder.verbs.plan_measure import Bed, kls_of

_DIFFER = 2.0
"""Two predictions that differ by this factor are not believed."""
_MATTERS = 0.01
"""Share of the whole cost from which a group is measured."""
_MISSES = 1.25
"""A whole that is this factor above or below the sum of its parts is looked into."""
_MOST, _WORST = 24, 16
"""Groups that are measured alone; groups that are put back."""
_FARTHEST = 8.0
"""No factor is larger, or smaller than its inverse."""
_ROUNDS = 3

Basis = Literal["predicted", "measured", "restored"]


@dataclass(frozen=True, kw_only=True)
class Aim:
    """A budget: bits of all planned groups together, or nats per token."""

    size: float | None = None
    cost: float | None = None


@dataclass
class Chosen:
    """A choice with what led to it.

    Attributes:
        factors: by group, by what its predicted costs were multiplied.
        basis: by group, where that comes from.
        whole: KL of the choice on the choosing text; None where it was not measured.
        notes: in words.
    """

    choice: Choice
    factors: dict[str, float] = field(default_factory=dict)
    basis: dict[str, Basis] = field(default_factory=dict)
    whole: float | None = None
    notes: list[str] = field(default_factory=list)


def chosen(
    bed: Bed,
    groups: Sequence[GroupCosts],
    names: Sequence[str],
    windows: Sequence[Sequence[int]],
    aim: Aim,
    score: str,
    draws: int = 1,
) -> Chosen:
    """Choose a format for every group.

    Args:
        names: the formats that may be chosen.
        windows: the choosing text.
        draws: of labels, with which costs were predicted.
        score: "gradient" measures nothing; "auto" corrects; "measured" has costs that were measured already.

    Raises:
        StudfinderError: nothing fits the budget.
    """
    work = _Work(bed, groups, set(names), windows, aim, draws)
    found = work.solved(Chosen(work.solve({})))
    if score == "gradient":
        return found
    if score == "auto":
        found = work.solved(work.alone(found))
    found = work.looked_at(found)
    return work.put_back(found) if score == "auto" else found


class _Work:
    def __init__(
        self,
        bed: Bed,
        groups: Sequence[GroupCosts],
        names: set[str],
        windows: Sequence[Sequence[int]],
        aim: Aim,
        draws: int,
    ) -> None:
        self.bed, self.groups, self.windows, self.aim = bed, groups, windows, aim
        self.noise = (2 / (len(windows) * draws)) ** 0.5  # of a mean of squares of sums that are about normal
        self.every = {one.name: {c.stored_as: c for c in one.costs} for one in groups}
        self.costs = {one.name: {c.stored_as: c for c in one.costs if c.stored_as in names} for one in groups}
        self.sizes = {
            one.name: {c.stored_as: c.bits * one.weights for c in one.costs if c.stored_as in names} for one in groups
        }

    def solve(self, factors: Mapping[str, float], cost: float | None = None) -> Choice:
        costs = {
            group: {name: one.nats * factors.get(group, 1.0) for name, one in own.items()}
            for group, own in self.costs.items()
        }
        if self.aim.size is None:
            return cheapest(costs, self.sizes, cost=self.aim.cost if cost is None else cost)
        weights = sum(one.weights for one in self.groups)
        least = sum(min(own.values()) for own in self.sizes.values())
        if least > self.aim.size * (1 + 1e-9):
            raise StudfinderError(
                f"no formats come to {self.aim.size / weights:.4g} bits a weight: the fewest are {least / weights:.4g}",
                do="Give a larger budget, or smaller --formats",
            )
        return cheapest(costs, self.sizes, size=self.aim.size)

    def solved(self, found: Chosen) -> Chosen:
        """The same with the choice that its factors lead to."""
        return replace(found, choice=self.solve(found.factors))

    def whole(self, choice: Choice) -> float:
        """KL of a choice on the choosing text."""
        return kls_of(self.bed, "measuring the plan", self.windows, {"plan": choice.formats}).kl("plan").value

    def alone(self, found: Chosen) -> Chosen:
        """Groups whose two predictions differ, and whose cost counts, measured one at a time."""
        doubtful = [
            group
            for group, name in found.choice.formats.items()
            if self.costs[group][name].kl > _MATTERS * found.choice.cost and self._differs(group, name)
        ]
        doubtful = sorted(doubtful, key=lambda group: -self._predicted(found, group))[:_MOST]
        if not doubtful:
            return found
        pairs = {group: {group: found.choice.formats[group]} for group in doubtful}
        seen = kls_of(self.bed, "measuring single groups", self.windows, pairs)
        factors = {group: _bounded(seen.kl(group).value / self._predicted(found, group)) for group in doubtful}
        notes = [f"measured alone, since two predictions differ: {count(len(doubtful), 'group')}."]
        return replace(
            found,
            factors=found.factors | factors,
            basis=found.basis | dict.fromkeys(factors, "measured"),
            notes=[*found.notes, *notes],
        )

    def _differs(self, group: str, name: str) -> bool:
        """Whether the two predictions of a group differ by more than the direction's own noise lets them; where numbers
        are kept those of the same format without."""
        one = self.every[group].get(format_named(name).plain.name)
        if one is None or one.together is None or not one.kl:
            return False
        ratio = one.together / one.kl
        return ratio > _DIFFER * (1 + 2 * self.noise) or ratio < (1 - 2 * self.noise) / _DIFFER

    def _predicted(self, found: Chosen, group: str) -> float:
        return self.costs[group][found.choice.formats[group]].nats

    def looked_at(self, found: Chosen) -> Chosen:
        """The whole measured; where the budget is nats, the choice scaled until the whole is within it."""
        found = replace(found, whole=self.whole(found.choice))
        budget = self.aim.cost
        if budget is None:
            return found
        allowed = budget
        for _ in range(_ROUNDS):
            assert found.whole is not None
            if 0.9 * budget <= found.whole <= budget or not found.choice.cost:
                break
            allowed = min(allowed, found.choice.cost) * budget / max(found.whole, 1e-12) * 0.98
            choice = self.solve(found.factors, allowed)
            found = replace(found, choice=choice, whole=self.whole(choice))
        return found

    def put_back(self, found: Chosen) -> Chosen:
        """Where the whole is not the sum of its parts: each of the worst groups left whole in the rounded model says
        what it costs there. The better of both choices stays."""
        assert found.whole is not None
        if not found.choice.cost or 1 / _MISSES < found.whole / found.choice.cost < _MISSES or self.aim.size is None:
            return found
        formats = found.choice.formats
        worst = sorted(formats, key=lambda g: -self._predicted(found, g) * found.factors.get(g, 1.0))[:_WORST]
        worst = [group for group in worst if self._predicted(found, group) > 0]
        without = {group: {g: name for g, name in formats.items() if g != group} for group in worst}
        seen = kls_of(self.bed, "putting groups back", self.windows, {"plan": formats, **without})
        gained = {group: max(seen.kl("plan", minus=group).value, 0.0) for group in worst}
        factors = {group: _bounded(gained[group] / self._predicted(found, group)) for group in worst}
        # What was not put back is taken to have changed as the others did on average.
        rest = sum(gained.values()) / max(sum(self._predicted(found, group) for group in worst), 1e-300)
        every = {group: _bounded(rest) * found.factors.get(group, 1.0) for group in formats} | factors
        choice = self.solve(every)
        said = (
            f"on the choosing text the whole costs {found.whole:.3g} nats, its parts come to {found.choice.cost:.3g}: "
            f"{count(len(worst), 'group')} put back, one at a time"
        )
        if choice.formats == formats:
            return replace(found, notes=[*found.notes, f"{said}; the plan stays."])
        whole = self.whole(choice)
        if whole >= found.whole:
            return replace(found, notes=[*found.notes, f"{said}; no better plan came of it ({whole:.3g})."])
        return Chosen(
            choice=choice,
            factors=every,
            basis=found.basis | dict.fromkeys(worst, "restored"),
            whole=whole,
            notes=[*found.notes, f"{said}, and the plan made from that costs {whole:.3g}."],
        )


def _bounded(factor: float) -> float:
    return min(max(factor, 1 / _FARTHEST), _FARTHEST)

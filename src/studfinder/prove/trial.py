"""Candidates before the bench: how far each is looked at, and what is known of it in the end. See the package for the
rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from studfinder.prove.bench import EditSet, ProofBench
from studfinder.prove.rule import CONTROLS, bounds, does_nothing, early, stands_out, still_open, verdict_of
from studfinder.records import Interval
from studfinder.records.numbers import Verdict


@dataclass
class Case:
    """One candidate, and what is known of it so far.

    Attributes:
        alone: the change that sets it to zero.
        without: the change that sets all others of the set to zero; empty if there are none, or it is in no set.
        controls: gives the changes of its matched controls, each alone and in its place in the set.
        against: the KL of each control; `worst`: the largest one's interval. Empty where it does nothing by itself.
        marginal: its share of the set; `others`: what each control's would be in its place.
    """

    alone: EditSet
    without: EditSet
    controls: Callable[[], tuple[Sequence[EditSet], Sequence[EditSet]]]
    against: tuple[float, ...] = ()
    worst: Interval | None = None
    marginal: Interval | None = None
    others: tuple[float, ...] = ()


@dataclass
class _Race:
    """Controls that are left as soon as they cannot reach what they would have to: `needed`, counted from what `base`
    does, or from the clean model."""

    case: Case
    controls: Sequence[EditSet]
    base: EditSet | None
    needed: float
    open: list[EditSet] = field(default_factory=list)


class Trial:
    """Candidates that are tested together.

    Args:
        everything: the change that sets to zero all of them that are tested as a set too; empty if none are.
        floor: KL in nats per token below which nothing matters.
    """

    def __init__(self, bench: ProofBench, cases: Sequence[Case], everything: EditSet, floor: float) -> None:
        self.bench, self.cases, self.everything, self.floor = bench, list(cases), everything, floor
        self.tested, self.all = len(cases), bench.looks[-1]
        self.together = [everything] if everything else []

    def run(self) -> list[Verdict]:
        """The verdict on each."""
        self._alone()
        self._controls()
        self._shares()
        return [
            verdict_of(self.bounds(case.alone), case.against, case.marginal, case.others, self.floor)
            for case in self.cases
        ]

    def bounds(self, change: EditSet) -> Interval:
        """The KL of a change, on the windows it was looked at."""
        return self.interval(self.bench.kl[change])

    def interval(self, sums: np.ndarray, exponential: bool = False) -> Interval:
        """Of sums over the windows that something was looked at."""
        tests = self.tested if len(sums) == self.all else early(self.tested)
        return bounds(sums, self.bench.tokens, tests, exponential=exponential)

    def _alone(self) -> None:
        bench, still, loud = self.bench, self.cases, self.cases[: self.tested // 2]
        for upto in bench.looks:
            bench.ahead = bench.cost([case.alone for case in still], self.all - upto) + self._guessed(loud)
            bench.look([*self.together, *(case.alone for case in still)], upto)
            if upto < self.all:
                still = [case for case in still if not self._silent(bench.kl[case.alone])]
                loud = [case for case in still if self._value(case.alone) > self.floor]

    def _controls(self) -> None:
        races = [
            _Race(case, case.controls()[0], None, low)
            for case in self.cases
            if (low := self.bounds(case.alone).low) > self.floor
        ]
        self._race(races)
        for race in races:
            race.case.against = tuple(self._value(control) for control in race.controls)
            race.case.worst = self.bounds(max(race.open, key=self._value))

    def _shares(self) -> None:
        """What each candidate that is not proven alone adds to the set."""
        bench, races = self.bench, []
        open_cases = [
            case
            for case in self.cases
            if case.without
            and not stands_out(self.bounds(case.alone).low, case.against, self.floor)
            and self._value(self.everything) > self.floor
        ]
        still = open_cases
        for upto in bench.looks if still else ():
            bench.ahead = bench.cost([case.without for case in still[:1]], self.all - upto)
            bench.look([case.without for case in still], upto)
            if upto < self.all:
                still = [case for case in still if not self._silent(self._share(case))]
        for case in open_cases:
            case.marginal = self.interval(self._share(case))
            if case.marginal.low > self.floor:
                # Taking away a weight from a model that is broken already shifts it somewhere: so would a control.
                races.append(_Race(case, case.controls()[1], case.without, case.marginal.low))
        self._race(races)
        for race in races:
            race.case.others = tuple(self._value(control, race.base) for control in race.controls)

    def _race(self, races: list[_Race]) -> None:
        bench = self.bench
        for race in races:
            race.open = list(race.controls)
        for upto in bench.looks if races else ():
            bench.ahead = bench.cost([race.open[0] for race in races], self.all - upto)
            bench.look([control for race in races for control in race.open], upto)
            if upto < self.all:
                for race in races:
                    sums = {control: self._sums(control, race.base)[:upto] for control in race.open}
                    race.open = still_open(sums, bench.tokens, race.needed, self.tested)

    def _guessed(self, loud: Sequence[Case]) -> float:
        """The work of controls and shares: most controls are left after a look or two, and most shares too."""
        cost, alone = self.bench.cost, [case.alone for case in loud]
        shares = [case.without for case in self.cases if case not in loud and case.without]
        return cost(alone * CONTROLS, self.all / 12) + cost(alone, self.all) + cost(shares, self.all / 4)

    def _silent(self, sums: np.ndarray) -> bool:
        return does_nothing(sums, self.bench.tokens, self.floor, self.tested)

    def _sums(self, change: EditSet, base: EditSet | None) -> np.ndarray:
        sums = self.bench.kl[change]
        return sums if base is None else sums - self.bench.kl[base][: len(sums)]

    def _share(self, case: Case) -> np.ndarray:
        return -self._sums(case.without, self.everything)

    def _value(self, change: EditSet, base: EditSet | None = None) -> float:
        sums = self._sums(change, base)
        return float(sums.sum() / self.bench.tokens[: len(sums)].sum())

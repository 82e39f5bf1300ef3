"""Every candidate put to the proof; see the package for the rule."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from studfinder.edits import matched_controls, zero
from studfinder.models import LM
from studfinder.prove.bench import Bench, Change
from studfinder.prove.rule import CONTROLS, FLOOR, MOST, bounds, early, silent, stands_out, still_open, verdict_of
from studfinder.records import Effect, Findings, Interval, Proof, SuperWeight
from studfinder.records.run import ids_hash
from studfinder.runs import Progress
from studfinder.texts import proof_windows
from studfinder.texts.prompts import PROOF_TEXT


def prove(
    lm: LM,
    findings: Findings,
    *,
    bos: bool | None = None,
    most: int = MOST,
    floor: float = FLOOR,
    progress: Progress = lambda what, done, total: None,
) -> Findings:
    """Give each super weight its effect and its verdict.

    Args:
        findings: of this very model, with its candidates, best first. Controls are matched on their prompts.
        bos: as in the scan.
        most: how many to test.
        floor: KL in nats per token below which nothing matters.
        progress: told (what, done, total) in runs of a block over a window; the total is an estimate of the whole
            proof, and gets better as candidates and controls are left.

    Returns:
        the findings with all candidates judged, proven ones first, and how they were tested.

    Raises:
        StudfinderError: a model that is not causal; findings that do not know the token ids of their prompts.
    """
    tested = replace(findings, super_weights=findings.super_weights[:most])
    rest = findings.super_weights[most:]
    bench = Bench(lm, proof_windows(lm, bos=bos), lambda *told: progress("proving", *told))
    trial = _Trial(bench, tested, floor)
    trial.alone()
    trial.controls()
    trial.shares()
    judged = [trial.judged(case) for case in trial.cases]
    order = {"proven": 0, "proven-jointly": 1, "candidate": 2, "inert": 3}
    judged.sort(key=lambda w: (order[w.verdict], -w.effect.kl.value if w.verdict == "proven" and w.effect else 0))
    proof = Proof(
        text=PROOF_TEXT,
        text_hash=ids_hash(bench.windows),
        windows=len(bench.windows),
        looks=tuple(bench.looks),
        tokens=int(bench.tokens.sum()),
        floor=floor,
        level=1 - 0.05 / max(1, len(judged)),
        tested=len(judged),
        skipped=len(rest),
        joint=trial.effect(trial.set) if judged else None,
        clean_perplexity=bench.clean_perplexity,
    )
    return replace(findings, super_weights=(*judged, *rest), proof=proof)


@dataclass
class _Case:
    """One candidate, and what is known of it so far.

    Attributes:
        alone, without: the change that sets it to zero, and the one that does so with all others.
        matched: the changes of its matched controls; empty until they are needed.
        against: the KL of each control; `worst`: the largest one's interval.
        marginal: its share of the set; `others`: what each control's would be in its place.
    """

    candidate: SuperWeight
    alone: Change
    without: Change
    matched: tuple[Change, ...] = ()
    against: tuple[float, ...] = ()
    worst: Interval | None = None
    marginal: Interval | None = None
    others: tuple[float, ...] = ()


@dataclass
class _Race:
    """Controls that are left as soon as they cannot reach what they would have to.

    Attributes:
        base: what their KL is counted from; None for the clean model.
        needed: what the largest would have to reach.
    """

    case: _Case
    controls: tuple[Change, ...]
    base: Change | None
    needed: float
    open: list[Change] = field(default_factory=list)


class _Trial:
    """The candidates of one model before the bench."""

    def __init__(self, bench: Bench, tested: Findings, floor: float) -> None:
        weights = tested.super_weights
        self.bench, self.findings, self.floor, self.tested = bench, tested, floor, len(weights)
        self.set: Change = zero(weights) if weights else ()
        self.cases = [
            _Case(weight, zero(weight), zero(others) if (others := [w for w in weights if w is not weight]) else ())
            for weight in weights
        ]

    def alone(self) -> None:
        """Each candidate by itself, and all together."""
        bench, still, loud = self.bench, self.cases, self.cases[: len(self.cases) // 2]
        for upto in bench.looks:
            bench.ahead = bench.cost([case.alone for case in still], bench.looks[-1] - upto) + self._later(loud)
            bench.look([*([self.set] if self.cases else []), *(case.alone for case in still)], upto)
            if upto < bench.looks[-1]:
                still = [
                    case for case in still if not silent(bench.kl[case.alone], bench.tokens, self.floor, self.tested)
                ]
                loud = [case for case in still if self._value(case.alone) > self.floor]

    def controls(self) -> None:
        """The controls of every candidate that does anything by itself."""
        races = [
            _Race(case, self._matched(case), None, low)
            for case in self.cases
            if (low := self._bounds(case.alone).low) > self.floor
        ]
        self._run(races)
        for race in races:
            race.case.against = tuple(self._value(control) for control in race.controls)
            race.case.worst = self._bounds(max(race.open, key=self._value))

    def shares(self) -> None:
        """What each candidate that is not proven alone adds to the set, and what its controls would."""
        open_cases = [case for case in self.cases if not self._proven(case)]
        if self.tested < 2 or not open_cases or not self._value(self.set) > self.floor:
            return
        bench, still = self.bench, open_cases
        for upto in bench.looks:
            bench.ahead = bench.cost([case.without for case in still[:1]], bench.looks[-1] - upto)
            bench.look([case.without for case in still], upto)
            if upto < bench.looks[-1]:
                still = [case for case in still if not silent(self._share(case), bench.tokens, self.floor, self.tested)]
        for case in open_cases:
            case.marginal = self._interval(self._share(case))
        # Taking away a weight from a model that is broken already shifts it somewhere: so would a control.
        races = [
            _Race(case, tuple((*case.without, *one) for one in self._matched(case)), case.without, case.marginal.low)
            for case in open_cases
            if case.marginal is not None and case.marginal.low > self.floor
        ]
        self._run(races)
        for race in races:
            race.case.others = tuple(self._value(control, race.base) for control in race.controls)

    def judged(self, case: _Case) -> SuperWeight:
        """The candidate with its effect and its verdict."""
        effect = replace(
            self.effect(case.alone), control_kl=case.worst, control_kls=case.against, marginal_kl=case.marginal
        )
        verdict = verdict_of(effect.kl, case.against, case.marginal, case.others, self.floor)
        return replace(case.candidate, effect=effect, verdict=verdict)

    def effect(self, change: Change) -> Effect:
        """What a change did, on the windows it was looked at."""
        nll = self.bench.nll[change] - self.bench.clean_nll[: len(self.bench.nll[change])]
        return Effect(kl=self._bounds(change), perplexity_ratio=self._interval(nll, exponential=True))

    def _run(self, races: list[_Race]) -> None:
        bench = self.bench
        for race in races:
            race.open = list(race.controls)
        for upto in bench.looks if races else ():
            bench.ahead = bench.cost([race.open[0] for race in races], bench.looks[-1] - upto)
            bench.look([control for race in races for control in race.open], upto)
            if upto < bench.looks[-1]:
                for race in races:
                    sums = {control: self._sums(control, race.base)[:upto] for control in race.open}
                    race.open = still_open(sums, bench.tokens, race.needed, self.tested)

    def _matched(self, case: _Case) -> tuple[Change, ...]:
        if not case.matched:
            own = (case.candidate.parameter, case.candidate.expert)
            others = {w.index for w in self.findings.super_weights if (w.parameter, w.expert) == own}
            found = matched_controls(self.bench.lm, case.candidate, self.findings, count=CONTROLS, exclude=others)
            case.matched = tuple(zero(weights) for weights in found)
        return case.matched

    def _proven(self, case: _Case) -> bool:
        return stands_out(self._bounds(case.alone).low, case.against, self.floor)

    def _later(self, loud: list[_Case]) -> float:
        """The work of controls and shares, guessed: most controls are left after a look or two, most shares too."""
        alone = [case.alone for case in loud]
        quiet = [case.without for case in self.cases if case not in loud and case.without]
        most = self.bench.looks[-1]
        return (
            self.bench.cost(alone * CONTROLS, most / 12)
            + self.bench.cost(alone, most)
            + self.bench.cost(quiet, most / 4)
        )

    def _sums(self, change: Change, base: Change | None) -> np.ndarray:
        sums = self.bench.kl[change]
        return sums if base is None else sums - self.bench.kl[base][: len(sums)]

    def _share(self, case: _Case) -> np.ndarray:
        return -self._sums(case.without, self.set)

    def _value(self, change: Change, base: Change | None = None) -> float:
        sums = self._sums(change, base)
        return float(sums.sum() / self.bench.tokens[: len(sums)].sum())

    def _bounds(self, change: Change) -> Interval:
        return self._interval(self.bench.kl[change])

    def _interval(self, sums: np.ndarray, exponential: bool = False) -> Interval:
        tests = self.tested if len(sums) == len(self.bench.windows) else early(self.tested)
        return bounds(sums, self.bench.tokens, tests, exponential=exponential)

"""Candidates + edits + measures -> verdicts with intervals and controls.

A candidate is a guess until the model has run without it. Each is set to zero alone, all together, and each one's
marginal share of the set is measured, as KL(clean || edited) in nats per token on our own proof text, with a paired
bootstrap over its windows. The rule, written down once:

* proven: alone, the lower bound of the KL exceeds the floor (0.01 nats) and the largest of 20 matched controls: single
  weights of the same matrix, half nearest in |w|, half nearest in contribution |x_k w_jk|.
* proven-jointly: not alone, but its marginal, KL(set) - KL(set without it), passes the same rule against the marginals
  of the same controls, each put in its place in the set.
* inert: the upper bounds of both are below the floor.
* candidate: everything else.

Bounds are at 1 - 0.05 / (candidates tested). To save time, whatever stays below half the floor on the first four
windows is not run on the rest (its interval says n = 4), and controls run on the first four windows; the three loudest
of them then run on all, and the largest of those three is the one that counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from studfinder.edits import Edit, Weights, matched_controls, zero
from studfinder.measures import Effects, effects_of
from studfinder.models import LM
from studfinder.records import Effect, Findings, Interval, Proof, SuperWeight
from studfinder.records.run import ids_hash
from studfinder.runs import Progress
from studfinder.stats import ratio_interval
from studfinder.texts import encode, proof_text
from studfinder.texts.prompts import PROOF_TEXT

FLOOR = 0.01
CONTROLS = 20
MOST = 10
"""Candidates tested, best score first; the proof of a long list of look-alikes would take hours on a large model."""
_SCREEN = 4
_FINALISTS = 3


@dataclass
class _Case:
    """What is known of one candidate so far."""

    candidate: SuperWeight
    effects: Effects
    row: int
    controls: tuple[float, ...] = ()
    worst: Interval | None = None
    marginal: Interval | None = None
    marginal_controls: tuple[float, ...] = ()


def prove(
    lm: LM,
    findings: Findings,
    *,
    bos: bool | None = None,
    most: int = MOST,
    floor: float = FLOOR,
    progress: Progress | None = None,
) -> Findings:
    """Give each super weight its effect and its verdict.

    Args:
        findings: of this very model, with its candidates, best first. Controls are matched on their prompts.
        bos: as in the scan.
        most: how many to test.
        floor: KL in nats per token below which nothing matters.
        progress: told (what, done, total).

    Returns:
        the findings with all candidates judged, proven ones first, and how they were tested.

    Raises:
        StudfinderError: a model that is not causal; findings that do not know the token ids of their prompts.
    """
    windows, _ = encode(lm, proof_text(), bos=bos)
    tested = replace(findings, super_weights=findings.super_weights[:most])
    candidates, rest = tested.super_weights, findings.super_weights[most:]
    level = 1 - 0.05 / max(1, len(candidates))
    bench = _Bench(lm, windows, progress or (lambda *_: None))
    cases = _alone(bench, candidates, floor)
    joint_effect = None
    if candidates:
        joint = bench.run("all together", [zero(candidates)])
        joint_effect = _effect_of(joint, 0, level)
        for case in cases:
            if case.effects.kl_interval(case.row, level).low > floor:
                case.controls, case.worst = _controls(bench, case, tested, level)
        if joint_effect.kl.value > floor:
            _marginals(bench, cases, joint, tested, level, floor)
    judged = [_judge(case, level, floor) for case in cases]
    order = {"proven": 0, "proven-jointly": 1, "candidate": 2, "inert": 3}
    judged.sort(key=lambda w: (order[w.verdict], -w.effect.kl.value if w.verdict == "proven" and w.effect else 0))
    clean = joint if candidates else bench.run("clean", [])
    proof = Proof(
        text=PROOF_TEXT,
        text_hash=ids_hash(windows),
        windows=len(windows),
        tokens=int(sum(len(ids) - 1 for ids in windows)),
        floor=floor,
        level=level,
        tested=len(candidates),
        skipped=len(rest),
        joint=joint_effect,
        clean_perplexity=clean.clean_perplexity,
    )
    return replace(findings, super_weights=(*judged, *rest), proof=proof)


@dataclass
class _Bench:
    """The model and the windows that every test runs on."""

    lm: LM
    windows: list[list[int]]
    progress: Progress

    def run(self, what: str, variants: Sequence[Sequence[Edit]], windows: int | None = None) -> Effects:
        done = 0.0

        def advance(share: float) -> None:
            nonlocal done
            done += share
            self.progress(f"proving: {what}", round(100 * done), 100)

        return effects_of(self.lm, self.windows[:windows], variants, advance=advance)


def _alone(bench: _Bench, tested: Sequence[SuperWeight], floor: float) -> list[_Case]:
    """Each candidate by itself: on a few windows first, on all of them if it does anything there."""
    if not tested:
        return []
    screen = bench.run("each alone", [zero(candidate) for candidate in tested], _SCREEN)
    loud = [i for i in range(len(tested)) if screen.kl[i].sum() / screen.tokens.sum() >= floor / 2]
    full = bench.run("each alone", [zero(tested[i]) for i in loud]) if loud else screen
    return [
        _Case(candidate, full, loud.index(i)) if i in loud else _Case(candidate, screen, i)
        for i, candidate in enumerate(tested)
    ]


def _controls(bench: _Bench, case: _Case, tested: Findings, level: float) -> tuple[tuple[float, ...], Interval]:
    """KL of every matched control, and the interval of the largest."""
    edits = [zero(weights) for weights in _matched(bench.lm, case, tested)]
    return _loudest(bench, f"controls of {case.candidate}", edits, None, level)


def _loudest(
    bench: _Bench, what: str, variants: Sequence[Sequence[Edit]], minus: np.ndarray | None, level: float
) -> tuple[tuple[float, ...], Interval]:
    """KL of each variant (less `minus`, by window), three of them on all windows, and the largest one's interval."""
    base = np.zeros(len(bench.windows)) if minus is None else minus
    screen = bench.run(what, variants, _SCREEN)
    values = (screen.kl - base[: screen.kl.shape[1]]).sum(axis=1) / screen.tokens.sum()
    loudest = [int(i) for i in np.argsort(-values)[:_FINALISTS]]
    full = bench.run(what, [variants[i] for i in loudest])
    intervals = [ratio_interval(full.kl[row] - base, full.tokens, level=level) for row in range(len(loudest))]
    for i, interval in zip(loudest, intervals, strict=True):
        values[i] = interval.value
    return tuple(float(value) for value in values), max(intervals, key=lambda interval: interval.value)


def _matched(lm: LM, case: _Case, tested: Findings) -> tuple[Weights, ...]:
    own = (case.candidate.parameter, case.candidate.expert)
    others = {weight.index for weight in tested.super_weights if (weight.parameter, weight.expert) == own}
    return matched_controls(lm, case.candidate, tested, count=CONTROLS, exclude=others)


def _marginals(bench: _Bench, cases: list[_Case], joint: Effects, tested: Findings, level: float, floor: float) -> None:
    """What each candidate that is not proven alone adds to the set; None is measured if the set is one candidate."""
    open_cases = [case for case in cases if _alone_verdict(case, level, floor) != "proven"]
    if len(tested.super_weights) < 2 or not open_cases:
        return
    what = "each one's share of the set"
    without = [zero([w for w in tested.super_weights if w is not case.candidate]) for case in open_cases]
    screen = bench.run(what, without, _SCREEN)
    shares = (joint.kl[0][:_SCREEN] - screen.kl).sum(axis=1) / screen.tokens.sum()
    loud = [i for i, share in enumerate(shares) if share >= floor / 2]
    for i, case in enumerate(open_cases):
        if i not in loud:
            case.marginal = ratio_interval(joint.kl[0][:_SCREEN] - screen.kl[i], screen.tokens, level=level)
    if not loud:
        return
    open_cases, without = [open_cases[i] for i in loud], [without[i] for i in loud]
    effects = bench.run(what, without)
    for row, case in enumerate(open_cases):
        case.marginal = ratio_interval(joint.kl[0] - effects.kl[row], joint.tokens, level=level)
        if case.marginal.low <= floor:
            continue
        # Taking away a weight from a model that is broken already shifts it somewhere: so would a control.
        swapped = [(*without[row], *zero(weights)) for weights in _matched(bench.lm, case, tested)]
        what = f"share of the controls of {case.candidate}"
        case.marginal_controls, _ = _loudest(bench, what, swapped, effects.kl[row], level)


def _alone_verdict(case: _Case, level: float, floor: float) -> str:
    low = case.effects.kl_interval(case.row, level).low
    return "proven" if case.worst is not None and low > max(floor, case.worst.value) else "open"


def _judge(case: _Case, level: float, floor: float) -> SuperWeight:
    effect = replace(
        _effect_of(case.effects, case.row, level),
        control_kl=case.worst,
        control_kls=case.controls,
        marginal_kl=case.marginal,
    )
    marginal = case.marginal
    if _alone_verdict(case, level, floor) == "proven":
        verdict = "proven"
    elif marginal is not None and case.marginal_controls and marginal.low > max(floor, *case.marginal_controls):
        verdict = "proven-jointly"
    elif effect.kl.high < floor and (marginal is None or marginal.high < floor):
        verdict = "inert"
    else:
        verdict = "candidate"
    return replace(case.candidate, effect=effect, verdict=verdict)  # type: ignore[arg-type]


def _effect_of(effects: Effects, row: int, level: float) -> Effect:
    return Effect(kl=effects.kl_interval(row, level), perplexity_ratio=effects.perplexity_ratio(row, level))

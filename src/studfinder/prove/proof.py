"""Every candidate of some findings put to the proof; see the package for the rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from studfinder.edits import matched_controls, null, zero
from studfinder.models import LM
from studfinder.prove.bench import EditSet, ProofBench
from studfinder.prove.rule import CONTROLS, FLOOR, MOST
from studfinder.prove.trial import Case, Trial
from studfinder.records import Effect, Findings, Proof, SuperWeight
from studfinder.records.run import ids_hash
from studfinder.runs import Progress
from studfinder.stats import student_interval
from studfinder.texts import proof_windows
from studfinder.texts.prompts import PROOF_TEXT

_SMALL = 10
"""Floors: below so many, what any change at all does may be a part of what an effect is."""
_DRAWS = 4
"""Of the null edit, on the windows of the first look."""


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
    bench = ProofBench(lm, proof_windows(lm, bos=bos), lambda done, total: progress("proving", done, total))
    tested, rest = findings.super_weights[:most], findings.super_weights[most:]
    judged: list[SuperWeight] = []
    joint = None
    if tested:
        cases = [_case(lm, weight, replace(findings, super_weights=tested)) for weight in tested]
        trial = Trial(bench, cases, zero(tested), floor)
        verdicts = trial.run()
        small = [case.alone for case in cases if trial.bounds(case.alone).value < _SMALL * floor]
        nulls = {change: [null(change, seed) for seed in range(_DRAWS)] for change in small}
        bench.look([draw for draws in nulls.values() for draw in draws], bench.looks[0])
        for weight, case, verdict in zip(tested, cases, verdicts, strict=True):
            effect = _effect(trial, bench, case.alone)
            if case.alone in nulls:
                effect = _less(effect, bench, nulls[case.alone])
            effect = replace(effect, control_kl=case.worst, control_kls=case.against, marginal_kl=case.marginal)
            judged.append(replace(weight, effect=effect, verdict=verdict))
        joint = _effect(trial, bench, zero(tested))
    else:
        bench.look([], bench.looks[-1])
    order = {"proven": 0, "proven-jointly": 1, "candidate": 2, "inert": 3}
    judged.sort(key=lambda w: (order[w.verdict], -w.effect.kl.value if w.verdict == "proven" and w.effect else 0))
    proof = Proof(
        text=PROOF_TEXT,
        text_hash=ids_hash(bench.windows),
        windows=len(bench.windows),
        looks=tuple(bench.looks),
        tokens=int(bench.tokens.sum()),
        floor=floor,
        level=1 - 0.05 / max(1, len(tested)),
        tested=len(tested),
        skipped=len(rest),
        joint=joint,
        clean_perplexity=bench.clean_perplexity,
    )
    return replace(findings, super_weights=(*judged, *rest), proof=proof)


def _case(lm: LM, weight: SuperWeight, tested: Findings) -> Case:
    others = [one for one in tested.super_weights if one is not weight]
    without = zero(others) if others else ()

    @cache
    def controls() -> tuple[Sequence[EditSet], Sequence[EditSet]]:
        own = (weight.parameter, weight.expert)
        taken = {one.index for one in tested.super_weights if (one.parameter, one.expert) == own}
        found = [zero(one) for one in matched_controls(lm, weight, tested, count=CONTROLS, exclude=taken)]
        return found, [(*without, *one) for one in found]

    return Case(zero(weight), without, controls)


def _effect(trial: Trial, bench: ProofBench, change: EditSet) -> Effect:
    nll = bench.nll[change]
    ratio = trial.interval(nll - bench.clean_nll[: len(nll)], exponential=True)
    return Effect(kl=trial.bounds(change), perplexity_ratio=ratio)


def _less(effect: Effect, bench: ProofBench, draws: Sequence[EditSet]) -> Effect:
    """The effect with its null's beside it and taken off. The two were not looked at on the same windows, so the ends
    of the difference are those that the ends of both allow."""
    sums = np.mean([bench.kl[draw] for draw in draws], axis=0)
    beside, kl = student_interval(sums, bench.tokens[: len(sums)]), effect.kl
    net = replace(
        kl,
        value=kl.value - beside.value,
        low=kl.low - beside.high,
        high=kl.high - beside.low,
        level=min(kl.level, beside.level),
        method=f"{kl.method}, less the null's {beside.method}",
    )
    return replace(effect, null_kl=beside, net_kl=net)

"""Every candidate of some findings put to the proof; see the package for the rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from studfinder.detectors.census import Census
from studfinder.detectors.census_findings import THRESHOLD, in_order, numbers_of
from studfinder.edits import Weights, controls_by_prediction, matched_controls, null, scale, zero
from studfinder.models import LM
from studfinder.prove.bench import EditSet, ProofBench
from studfinder.prove.pools import Pooled, missed
from studfinder.prove.rule import CONTROLS, FLOOR, MOST, POOLS
from studfinder.prove.trial import Case, Trial
from studfinder.records import CensusCard, Effect, Findings, OtherNumber, Proof, SuperWeight
from studfinder.records.numbers import VOCABULARY
from studfinder.records.run import ids_hash
from studfinder.runs import Progress, silent
from studfinder.stats import most_unseen, student_interval
from studfinder.texts import proof_windows
from studfinder.texts.prompts import PROOF_TEXT

PROVING = "proving"
"""A step, as it is told to progress."""
_SMALL = 10
"""Floors: below so many, what any change at all does may be a part of what an effect is."""
_DRAWS = 4
"""Of the null edit, on the windows of the first look."""

Entry = SuperWeight | OtherNumber


def prove(
    lm: LM,
    findings: Findings,
    *,
    census: Census | None = None,
    bos: bool | None = None,
    most: int = MOST,
    pools: int = POOLS,
    floor: float = FLOOR,
    progress: Progress = silent,
) -> Findings:
    """Give each candidate its effect and its verdict, and say how many numbers may have been missed.

    Args:
        findings: of this very model, with its candidates. Controls of super weights are matched on their prompts.
        census: that the findings' other numbers are from; without it their controls are matched by size alone, and
            nothing is said of what was missed.
        bos: as in the scan.
        most: how many to test, in the order of `in_order`.
        pools: how many pools of all other numbers are measured, 0 for none. What is found in them is tested too.
        floor: KL in nats per token below which nothing matters.
        progress: told (what, done, total); of the proof in runs of a block over a window, an estimate that gets better
            as candidates and controls are left.

    Returns:
        the findings with all candidates judged, proven ones first, and how they were tested.

    Raises:
        StudfinderError: a model that is not causal; findings that do not know the token ids of their prompts.
    """
    bench = ProofBench(lm, proof_windows(lm, bos=bos), lambda done, total: progress(PROVING, done, total))
    tested, pooled = in_order(findings)[:most], None
    if census is not None and pools:
        listed = {(one.parameter, one.index) for one in tested}
        pooled = missed(lm, census, listed, bench.windows[: bench.looks[0]], pools, THRESHOLD, progress)
        known = {(one.parameter, one.index) for one in in_order(findings)}
        new = numbers_of(lm, [spot for spot in pooled.found if spot not in known], census.top)
        findings = replace(findings, other_numbers=(*findings.other_numbers, *new))
        tested += [one for one in in_order(findings) if (one.parameter, one.index) in pooled.found]

    judged, joint = _tried(lm, bench, tested, findings, census, floor)
    order = {"proven": 0, "proven-jointly": 1, "candidate": 2, "inert": 3}

    def place(one: Entry) -> tuple[bool, int, float]:
        proven = one.verdict == "proven" and one.effect is not None
        return one.effect is None, order[one.verdict], -one.effect.kl.value if proven and one.effect else 0.0

    weights = sorted((judged.get(one, one) for one in findings.super_weights), key=place)
    others = sorted((judged.get(one, one) for one in findings.other_numbers), key=place)
    proof = Proof(
        text=PROOF_TEXT,
        text_hash=ids_hash(bench.windows),
        windows=len(bench.windows),
        looks=tuple(bench.looks),
        tokens=int(bench.tokens.sum()),
        floor=floor,
        level=1 - 0.05 / max(1, len(tested)),
        tested=len(tested),
        skipped=len(weights) + len(others) - len(tested),
        joint=joint,
        clean_perplexity=bench.clean_perplexity,
    )
    found = replace(
        findings,
        super_weights=tuple(one for one in weights if isinstance(one, SuperWeight)),
        other_numbers=tuple(one for one in others if isinstance(one, OtherNumber)),
        proof=proof,
    )
    return found if found.census is None else replace(found, census=_counted(found, pooled))


def _tried(
    lm: LM, bench: ProofBench, tested: Sequence[Entry], findings: Findings, census: Census | None, floor: float
) -> tuple[dict[Entry, Entry], Effect | None]:
    """What is tested, judged, and what the super weights among it do together."""
    if not tested:
        bench.look([], bench.looks[-1])
        return {}, None
    spikes = [one for one in tested if isinstance(one, SuperWeight)]
    together = zero(spikes) if spikes else ()
    cases = [_case(lm, one, tested, findings, census) for one in tested]
    trial = Trial(bench, cases, together, floor)
    verdicts = trial.run()
    small = [case.alone for case in cases if trial.bounds(case.alone).value < _SMALL * floor]
    nulls = {change: [null(change, seed) for seed in range(_DRAWS)] for change in small}
    bench.look([draw for draws in nulls.values() for draw in draws], bench.looks[0])
    off = {one: scale(one, -1 / one.value) for one in tested if _multiplies_one_more(one)}
    bench.look(off.values(), bench.looks[-1])
    judged: dict[Entry, Entry] = {}
    for one, case, verdict in zip(tested, cases, verdicts, strict=True):
        effect = _effect(trial, bench, case.alone)
        if case.alone in nulls:
            effect = _less(effect, bench, nulls[case.alone])
        effect = replace(effect, control_kl=case.worst, control_kls=case.against, marginal_kl=case.marginal)
        judged[one] = replace(one, effect=effect, verdict=verdict)
        if isinstance(one, OtherNumber) and one in off:
            judged[one] = replace(one, effect=effect, verdict=verdict, effect_off=_effect(trial, bench, off[one]))
    return judged, _effect(trial, bench, together) if together else None


def _multiplies_one_more(one: Entry) -> bool:
    """Whether it is a gain of the kind 1 + w, whose factor is another thing than w."""
    return isinstance(one, OtherNumber) and one.predicted_off is not None and one.value != 0


def _case(lm: LM, entry: Entry, tested: Sequence[Entry], findings: Findings, census: Census | None) -> Case:
    own = [one.index for one in tested if one.parameter == entry.parameter]
    if isinstance(entry, OtherNumber):

        @cache
        def alike() -> tuple[Sequence[EditSet], Sequence[EditSet]]:
            number = Weights(parameter=entry.parameter, entries=(entry.index,))
            shape = tuple(lm.model.get_parameter(entry.parameter).shape)
            known = census.predictions(entry.parameter, shape) if census else {}
            return [zero(one) for one in controls_by_prediction(lm, number, known, count=CONTROLS, exclude=own)], []

        return Case(zero(entry), (), alike)

    others = [one for one in tested if isinstance(one, SuperWeight) and one is not entry]
    without = zero(others) if others else ()

    @cache
    def controls() -> tuple[Sequence[EditSet], Sequence[EditSet]]:
        found = [zero(one) for one in matched_controls(lm, entry, findings, count=CONTROLS, exclude=own)]
        return found, [(*without, *one) for one in found]

    return Case(zero(entry), without, controls)


def _counted(found: Findings, pooled: Pooled | None) -> CensusCard | None:
    """The card with how many numbers were measured to carry something, and how many may have been missed."""
    card = found.census
    others = [one for one in found.other_numbers if one.kind not in VOCABULARY]
    entries: list[Entry] = [*found.super_weights, *others]
    measured = [one.effect.kl.value for one in entries if one.effect is not None]
    if card is None:
        return None
    card = replace(card, heavy=sum(kl > card.threshold for kl in measured))
    if pooled is None:
        return card
    unseen = most_unseen(len(pooled.found), pooled.chance)
    return replace(card, pools=pooled.tested, pools_of=pooled.of, loud=pooled.loud, chance=pooled.chance, unseen=unseen)


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

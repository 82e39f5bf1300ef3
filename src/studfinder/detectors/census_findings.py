"""What a census adds to findings: what is predicted of each candidate, the numbers without a spike, and its card."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from typing import TypeVar

import numpy as np

from studfinder.detectors.census import LEAST_DECADE, Census, PredictedNumber, Spot
from studfinder.edits import Names
from studfinder.models import LM
from studfinder.models.kinds import kinds_of
from studfinder.records import CensusCard, CensusPlace, Findings, OtherNumber, SuperWeight
from studfinder.records.numbers import NumberKind

BIAS: Mapping[NumberKind, float] = {"embedding": 0.02}
"""Measured over predicted, median, where predictions are off by far: an entry of an embedding matters as often as its
token comes (docs/results/census.md)."""
THRESHOLD = 0.05
"""Nats per token from which a number is said to carry something."""
_LISTED = 100
_LEAST = 0.01

_Ranked = TypeVar("_Ranked", bound=Hashable)


def in_turn(*rankings: Sequence[_Ranked]) -> list[_Ranked]:
    """The first of each, the second of each, and so on, each once."""
    return list(dict.fromkeys(one for one in chain.from_iterable(zip_longest(*rankings)) if one is not None))


def in_order(findings: Findings) -> list[SuperWeight | OtherNumber]:
    """All candidates, those to be tested first at the front: what spikes (by what is predicted of it and by its score
    in turn, for a prediction sees no effect that has saturated) and what does not, in turn."""
    spikes = findings.super_weights
    likely = sorted(spikes, key=lambda weight: -(weight.predicted or 0.0)) if findings.census else ()
    return in_turn(in_turn(likely, spikes), findings.other_numbers)


def with_census(lm: LM, findings: Findings, found: Census, draws: int) -> Findings:
    """The findings with what a census of their model says.

    The numbers listed are the first 100 that are no candidate already, by what is predicted of them less the known bias
    of their kind, from 0.01 nats on.

    Args:
        found: asked for the findings' candidates (`also`).
        draws: of the census.
    """
    kinds = kinds_of(lm)

    def expected(one: PredictedNumber) -> float:
        return one.most * BIAS.get(kinds[one.parameter], 1.0)

    spikes = {(weight.parameter, weight.index) for weight in findings.super_weights}
    others = [one for one in found.top if (one.parameter, one.index) not in spikes and expected(one) >= _LEAST]
    others = sorted(others, key=lambda one: -expected(one))[:_LISTED]
    predicted = {spot: one.kl for spot, one in found.also.items()}
    return replace(
        findings,
        super_weights=tuple(
            replace(weight, predicted=predicted.get((weight.parameter, weight.index)))
            for weight in findings.super_weights
        ),
        other_numbers=numbers_of(lm, [(one.parameter, one.index) for one in others], others),
        census=_card(lm, found, draws, kinds),
    )


def numbers_of(lm: LM, spots: Sequence[Spot], known: Sequence[PredictedNumber]) -> tuple[OtherNumber, ...]:
    """Numbers as they stand in findings, with what is predicted of those that are known."""
    names, kinds, layers = Names(lm), kinds_of(lm), _layers(lm)
    predicted = {(one.parameter, one.index): one for one in known}
    found = []
    for parameter, index in spots:
        one = predicted.get((parameter, index))
        number = OtherNumber(
            name=names.of(parameter, index),
            kind=kinds[parameter],
            layer=layers[parameter],
            parameter=parameter,
            index=index,
            value=float(lm.model.get_parameter(parameter).detach()[index]),
            predicted=one.kl if one else None,
            error=one.error if one else None,
            predicted_off=one.off if one else None,
        )
        found.append(number)
    return tuple(found)


def _layers(lm: LM) -> dict[str, int | None]:
    """The block of each parameter, the first where several hold it."""
    blocks = {layer.block + ".": number for number, layer in reversed(list(enumerate(lm.anatomy.layers)))}
    names = [name for name, _ in lm.model.named_parameters()]
    return {name: next((blocks[block] for block in blocks if name.startswith(block)), None) for name in names}


def _card(lm: LM, found: Census, draws: int, kinds: Mapping[str, NumberKind]) -> CensusCard:
    layers = _layers(lm)
    rows: dict[tuple[int | None, NumberKind], list[str]] = {}
    for name in found.decades:
        rows.setdefault((layers[name], kinds[name]), []).append(name)
    places = tuple(
        CensusPlace(
            layer=layer,
            kind=kind,
            predicted=sum(found.totals[name] for name in names),
            decades=tuple(int(count) for count in np.sum([found.decades[name] for name in names], axis=0)),
        )
        for (layer, kind), names in rows.items()
    )
    half = sum(place.predicted for place in places) / 2
    sums = np.cumsum(sorted((one.kl for one in found.top), reverse=True))
    count = int(np.searchsorted(sums, half)) + 1
    return CensusCard(
        tokens=found.tokens,
        draws=draws,
        least_decade=LEAST_DECADE,
        places=places,
        half=count if 0 < half <= sums[-1] else None,
        threshold=THRESHOLD,
        nonfinite=tuple(found.nonfinite),
    )

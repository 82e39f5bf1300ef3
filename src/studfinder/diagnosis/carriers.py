"""Is what carries the model intact? What stands out in the original, at the same places of the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from studfinder.detectors import every_detector, observe
from studfinder.diagnosis.folded import FoldedOriginal
from studfinder.models import LM
from studfinder.records import SuperWeight, Thresholds
from studfinder.records.diagnosis import CarrierDiagnosis

_KEPT = 0.25
"""By how much of itself a carrier may change and be called intact."""
_MOST = 8
"""Carriers of each kind that are looked for."""


def what_carries(
    original: LM, made: LM, folded: FoldedOriginal, windows: Sequence[Sequence[int]]
) -> tuple[list[CarrierDiagnosis], list[SuperWeight]]:
    """Super-weight candidates with their output spikes, massive activations, massive values of K, and attention to the
    first token in the original's sink heads; and those candidates, the strongest first."""
    was, now = (_seen(lm, windows) for lm in (original, made))
    candidates = sorted(was["super_weights"].found(), key=lambda one: -one.score)[:_MOST]
    found = [
        *_weights(candidates, folded, was, now),
        *_activations(was["massive_activations"], now["massive_activations"]),
        *_keys(was["massive_values"], now["massive_values"]),
        *_sinks(was["attention_sinks"], now["attention_sinks"]),
    ]
    return found, candidates


def _seen(lm: LM, windows: Sequence[Sequence[int]]) -> Mapping[str, Any]:
    detectors = every_detector(lm, Thresholds())
    observe(lm, windows, detectors.values())
    return detectors


def _carrier(kind: str, place: str, was: float, is_now: float) -> CarrierDiagnosis:
    intact = abs(is_now - was) <= _KEPT * abs(was)
    return CarrierDiagnosis(kind=kind, place=place, was=was, is_now=is_now, intact=intact)


def _weights(
    candidates: Sequence[SuperWeight], folded: FoldedOriginal, was: Mapping[str, Any], now: Mapping[str, Any]
) -> Iterator[CarrierDiagnosis]:
    spikes, after = (each["super_weights"].output_spikes for each in (was, now))
    for one in candidates:
        if one.parameter in folded.now and folded.was[one.parameter].shape == folded.now[one.parameter].shape:
            before, value = folded.tensor(one.parameter)[one.index], folded.now[one.parameter].detach()[one.index]
            place = f"{one.parameter}[{', '.join(map(str, one.index))}]"
            yield _carrier("super-weight candidate", place, float(before), float(value))
    for layer in sorted({one.layer for one in candidates}):
        largest = [abs(each[layer].value) for each in (spikes, after)]
        yield _carrier("output spike", f"down_proj.output[{layer}]", *largest)


def _activations(was: Any, now: Any) -> Iterator[CarrierDiagnosis]:
    """Of each dim the largest one, at the same token."""
    by_dim: dict[int, Any] = {}
    for one in was.found():
        if one.dim not in by_dim or abs(one.value) > abs(by_dim[one.dim].value):
            by_dim[one.dim] = one
    for one in sorted(by_dim.values(), key=lambda one: -abs(one.value))[:_MOST]:
        there = {(each.prompt, each.position, each.dim): each.value for each in now.top(one.layer)}
        value = there.get((one.prompt, one.position, one.dim), 0.0)
        place = f"residual[{one.layer}], dim {one.dim}, position {one.position}"
        yield _carrier("massive activation", place, one.value, value)


def _keys(was: Any, now: Any) -> Iterator[CarrierDiagnosis]:
    found = [one for one in was.found() if one.tensor == "key"]
    for one in sorted(found, key=lambda one: -one.ratio)[:_MOST]:
        if one.layer in now.layers("key"):
            value = float(now.norm_HD("key", one.layer)[one.head, one.dim])
            yield _carrier("massive K", f"key[{one.layer}], head {one.head}, dim {one.dim}", one.norm, value)


def _sinks(was: Any, now: Any) -> Iterator[CarrierDiagnosis]:
    pairs = [
        (one.strength, float(strength_H[one.head]))
        for one in was.found()
        if (strength_H := now.strength_H(one.layer)) is not None
    ]
    if pairs:
        one, other = (sum(side) / len(pairs) for side in zip(*pairs, strict=True))
        yield _carrier("attention to the first token", f"mean of {len(pairs)} sink heads", one, other)

"""Findings held against a live model before anything is done with them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from studfinder.errors import StudfinderError
from studfinder.models.fingerprint import content_hash
from studfinder.models.lm import LM
from studfinder.records import Findings, OtherNumber, SuperWeight


def check_same_weights(lm: LM, theirs: str, whose: str) -> None:
    """Raise StudfinderError if a content hash is not that of this model."""
    here = content_hash(lm)
    if theirs != here:
        name = f"{lm.source.id} in {str(lm.dtype).removeprefix('torch.')}"
        raise StudfinderError(
            f"the findings are {whose}, with hash {theirs[:12]}, and this is {name}, with {here[:12]}",
            expected="findings of this model",
            do="Scan this model, or load the one that was scanned, in the same dtype",
        )


def check_findings(lm: LM, findings: Findings) -> None:
    """Whether findings are of this model, and every place in them is a place of this model.

    A number's parameter must exist, its index must be whole and inside, and the weight there must be the one that
    was recorded; layers, heads and dims of everything else must be this model's.

    Raises:
        StudfinderError: they are not; the first thing that does not fit is named.
    """
    check_same_weights(lm, findings.model.content_hash, f"of {findings.model.id} in {findings.model.dtype}")
    wrong = next(_wrong(lm, findings), None)
    if wrong is not None:
        raise StudfinderError(f"the findings do not fit {lm.source.id}: {wrong}", do="Scan it again")


def _wrong(lm: LM, findings: Findings) -> Iterator[str]:
    parameters = dict(lm.model.named_parameters(remove_duplicate=False))
    numbers: tuple[SuperWeight | OtherNumber, ...] = (*findings.super_weights, *findings.other_numbers)
    for weight in numbers:
        parameter = parameters.get(weight.parameter)
        if parameter is None:
            yield f"there is no parameter {weight.parameter}"
        elif parameter.dim() != len(weight.index) or any(
            at >= size for at, size in zip(weight.index, parameter.shape, strict=False)
        ):
            yield f"{list(weight.index)} is not an index into {weight.parameter} {tuple(parameter.shape)}"
        elif parameter.is_floating_point() and parameter.device.type != "meta":
            here = float(parameter.detach()[weight.index])
            if not math.isclose(here, weight.value, rel_tol=1e-6):
                yield f"{weight.parameter}{list(weight.index)} is {here:g}, and {weight.value:g} was recorded"
    anatomy = lm.anatomy
    layers, hidden, heads = len(anatomy.layers), anatomy.hidden, anatomy.heads
    for weight in findings.super_weights:
        if weight.layer >= layers:
            yield f"there is no layer {weight.layer}"
        elif weight.expert is not None:
            writers = anatomy.layers[weight.layer].writers
            if all((ref.parameter, ref.expert) != (weight.parameter, weight.expert) for ref in writers):
                yield f"there is no expert {weight.expert} in {weight.parameter}"
    for number in findings.other_numbers:
        if number.layer is not None and number.layer >= layers:
            yield f"there is no layer {number.layer}"
    for activation in findings.massive_activations:
        if activation.layer >= layers or activation.dim >= hidden:
            yield f"there is no dim {activation.dim} in layer {activation.layer}"
    for value in findings.massive_values:
        if value.layer >= layers or value.head >= heads:
            yield f"there is no {value.tensor} head {value.head} in layer {value.layer}"
    for sink in findings.attention_sinks:
        if sink.layer >= layers or sink.head >= heads:
            yield f"there is no head {sink.head} in layer {sink.layer}"

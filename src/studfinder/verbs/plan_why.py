"""Why a fused group hurts, as far as a scan has shown it: added to where its predicted cost lies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from studfinder.models import LM, check_findings
from studfinder.quantizers.targets import Target, by_fused
from studfinder.records import Findings, GroupCosts

_QKV = {"query": "Q", "key": "K", "value": "V"}


def causes(
    lm: LM, groups: Sequence[GroupCosts], found: Sequence[Target], findings: Findings | None
) -> tuple[GroupCosts, ...]:
    """The groups, each with what is known of it.

    Raises:
        StudfinderError: findings of another model.
    """
    if findings is None:
        return tuple(groups)
    check_findings(lm, findings)
    matrices = by_fused(found)
    said = ((group, list(_known(lm, matrices[group.name], findings))) for group in groups)
    return tuple(replace(group, why="; ".join([*known, *([group.why] if group.why else [])])) for group, known in said)


def _known(lm: LM, group: Sequence[Target], findings: Findings) -> Iterator[str]:
    names = {name for target in group for name in (target.name, target.ref.parameter)}
    for weight in findings.super_weights:
        if weight.parameter in names and weight.verdict.startswith("proven"):
            yield f"column {weight.col} meets the spike of a super weight ({weight.index[-2]}, {weight.index[-1]})"
    for number in findings.other_numbers:
        if number.parameter in names and number.verdict.startswith("proven"):
            yield f"holds a number that is proven ({', '.join(map(str, number.index))})"
    layer = lm.anatomy.layers[group[0].layer]
    mixer = layer.mixer
    for tensor, letter in _QKV.items() if mixer is not None else ():
        rows = getattr(mixer, tensor)
        if rows is None or rows.ref.parameter not in names:
            continue
        massive = sum(one.layer == group[0].layer and one.tensor == tensor for one in findings.massive_values)
        if massive:
            yield f"rows that make {massive} massive values of {letter}"

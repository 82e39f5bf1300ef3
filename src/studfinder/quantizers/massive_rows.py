"""The rows of matrices that make the massive values of Q and K: what a quantiser that keeps those must keep."""

from __future__ import annotations

from dataclasses import dataclass

from studfinder.edits import Weights
from studfinder.errors import StudfinderError, unknown
from studfinder.models import LM, check_findings, rotary_of
from studfinder.records import Findings

TENSORS = ("query", "key")


@dataclass(frozen=True, kw_only=True)
class MassiveRows:
    """Rows to hold out: those of the massive dims, and of the dims that rotate together with them.

    Attributes:
        findings: a scan's.
        tensors: "query", "key" or both. Few rows are of K, since its heads are few, and all queries meet them.
    """

    findings: Findings
    tensors: tuple[str, ...] = TENSORS

    def __post_init__(self) -> None:
        for tensor in self.tensors:
            if tensor not in TENSORS:
                raise unknown("there are no rows of", tensor, TENSORS)

    def of(self, lm: LM) -> tuple[Weights, ...]:
        """By parameter. Raises StudfinderError if the scan is of another model, or holds none of them."""
        check_findings(lm, self.findings)
        found = massive_rows(lm, self.findings, self.tensors)
        if not found:
            raise StudfinderError(
                f"the scan of {self.findings.model.id} has no massive values of {' or '.join(self.tensors)} "
                "whose rows are known"
            )
        return tuple(Weights(parameter=name, entries=tuple((row, None) for row in own)) for name, own in found.items())


def massive_rows(lm: LM, findings: Findings, tensors: tuple[str, ...] = TENSORS) -> dict[str, list[int]]:
    """The rows by parameter name; without those whose matrix is not known, or stored (in, out)."""
    rows: dict[str, set[int]] = {}
    for value in findings.massive_values:
        mixer = lm.anatomy.layers[value.layer].mixer
        if mixer is None or value.tensor not in tensors:
            continue
        made = {"query": mixer.query, "key": mixer.key}[value.tensor]
        if made is None or made.ref.transposed:
            continue
        own = rows.setdefault(made.ref.parameter, set())
        own |= {made.first[value.head] + dim for dim in _turned_with(lm, value.layer, value.dim) if dim < made.width}
    return {name: sorted(own) for name, own in sorted(rows.items())}


def _turned_with(lm: LM, layer: int, dim: int) -> list[int]:
    rotary = rotary_of(lm, layer)
    pair = None if rotary is None else rotary.pair_of(dim)
    if rotary is None or pair is None:
        return [dim]
    return [other for other in range(lm.anatomy.head_dim) if rotary.pair_of(other) == pair]

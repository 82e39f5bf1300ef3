"""An edit is a small frozen record: which numbers, and what is done to them. It serialises and hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.records import SuperWeight, to_json


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Entries of one Hugging Face parameter.

    Attributes:
        parameter: its name.
        entries: literal indices; None along an axis means all of it, so (3, None) is row 3 of a matrix.
    """

    parameter: str
    entries: tuple[tuple[int | None, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Multiply entries of a parameter by a factor; 0 sets them to zero.

    Attributes:
        target: which entries.
        factor: what they are multiplied by.
    """

    target: Weights
    factor: float


Target = SuperWeight | Weights | Iterable["Target"]


def zero(target: Target) -> tuple[Edit, ...]:
    """Set weights to zero: of a finding, a list of findings, or Weights. Raises StudfinderError if that is nothing."""
    return scale(target, 0.0)


def scale(target: Target, factor: float) -> tuple[Edit, ...]:
    """Multiply weights by a factor. Raises StudfinderError if the target is nothing."""
    chosen = _weights(target)
    if not chosen:
        raise StudfinderError("the edit has no target", expected="a finding, a list of findings, or Weights")
    return tuple(Edit(target=weights, factor=float(factor)) for weights in chosen)


def _weights(target: Target) -> list[Weights]:
    if isinstance(target, Weights):
        if not target.entries:
            raise StudfinderError(f"no entries of {target.parameter} are selected", expected="at least one")
        return [target]
    if isinstance(target, SuperWeight):
        return [Weights(parameter=target.parameter, entries=(target.index,))]
    if isinstance(target, Iterable) and not isinstance(target, str):
        return [weights for part in target for weights in _weights(part)]
    raise StudfinderError(f"cannot edit a {type(target).__name__}", expected="a finding, findings, or Weights")


def edits_hash(edits: Sequence[Edit]) -> str:
    """A hash of what the edits do, in order; the empty list has one too."""
    return hashlib.sha256("\n".join(to_json(edit) for edit in edits).encode()).hexdigest()


def layer_of(lm: LM, edits: Iterable[Edit]) -> int:
    """The first block that an edit touches; 0 if one touches something outside the blocks."""
    found = []
    for edit in edits:
        owners = [
            index
            for index, layer in enumerate(lm.anatomy.layers)
            if edit.target.parameter.startswith(layer.block + ".")
        ]
        found.append(owners[0] if owners else 0)
    return min(found, default=0)

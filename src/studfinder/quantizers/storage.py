"""How each matrix is stored in a checkpoint, and how what enters it is rounded: its scheme, format and inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from studfinder.quantizers.activations import ActivationScheme
from studfinder.quantizers.scheme import Scheme
from studfinder.records.scheme import Format, Inputs
from studfinder.report.words import count

MIXED = "mixed-precision"


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Of one matrix.

    Attributes:
        scheme: of its numbers.
        format: of compressed-tensors, or "dense".
        inputs: how what enters it is rounded; None leaves that.
    """

    scheme: Scheme
    format: str
    inputs: ActivationScheme | None = None

    @property
    def arguments(self) -> dict[str, Any] | None:
        """Its inputs as compressed-tensors' QuantizationArgs. Raises StudfinderError for what that has no place for."""
        return None if self.inputs is None or self.format == "dense" else self.inputs.arguments()

    @property
    def named(self) -> Format:
        """The format that a checkpoint says it is in."""
        rounded = self.inputs
        if rounded is None:
            return Format(weights=self.scheme)
        return Format(weights=self.scheme, inputs=Inputs(element=rounded.element, scope=rounded.scope))

    def __str__(self) -> str:
        inputs = "" if self.inputs is None else f", inputs {self.inputs.element} per {self.inputs.scope}"
        return f"{self.scheme}{inputs}"


def format_of(stored: Iterable[Storage]) -> str:
    """What a checkpoint of these calls its format."""
    formats = dict.fromkeys(one.format for one in stored)
    return next(iter(formats)) if len(formats) == 1 else MIXED


def in_words(layout: Mapping[str, Storage]) -> str:
    """The schemes of a checkpoint's matrices, with how many there are of each where they differ."""
    kinds: dict[str, int] = {}
    for one in layout.values():
        kinds[str(one)] = kinds.get(str(one), 0) + 1
    if len(kinds) == 1:
        return next(iter(kinds))
    return "; ".join(f"{name} ({count(number, 'matrix', 'matrices')})" for name, number in kinds.items())

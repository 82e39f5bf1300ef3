"""Formats that a plan chooses from: a scheme, with a share of the numbers kept or without; or 16 bits, left as it is.

A name says all of it: a scheme's (`records.scheme`: "int4-g64", "int4-g64-zero", "int8-channel", "fp8"); the same
with "-keep0.05%" behind it: that share of each matrix's numbers keeps its 16 bits, those whose rounding is predicted to
cost most; or "16".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.quantizers.scheme import Scheme, bits_per_weight, format_named
from studfinder.quantizers.targets import Target
from studfinder.records.plan import KEEPS

WHOLE_BITS = 16
"""Bits of a number that is left as it is, whatever dtype it is computed in: what checkpoints hold."""
LEFT = "16"
"""The name of the format that leaves a group as it is."""
PLAN_FORMATS = (
    "int4-g128",
    "int4-g64",
    "int4-g32",
    "int4-g128-zero",
    "int4-g64-zero",
    "int4-g32-zero",
    "mxfp4",
    "nvfp4",
    "int4-g128-zero-keep0.05%",
    "int4-g64-zero-keep0.05%",
    "int4-g64-keep0.05%",
    "int4-g64-zero-keep0.2%",
    "int4-g32-zero-keep0.2%",
    "fp8",
    "int8-channel",
    LEFT,
)
"""What is chosen from where nobody says."""


@dataclass(frozen=True, kw_only=True)
class WeightFormat:
    """One format.

    Attributes:
        name: see above.
        scheme: how weights are rounded; None leaves them.
        kept: share of each matrix's numbers that is kept.
    """

    name: str
    scheme: Scheme | None = None
    kept: float = 0.0

    def count(self, shape: torch.Size) -> int:
        """How many numbers of a matrix (out, in) are kept."""
        return int(self.kept * shape.numel())

    def size(self, shape: torch.Size) -> float:
        """Bits of a matrix (out, in) in this format: elements, scales, zero points, kept numbers with their places."""
        if self.scheme is None:
            return WHOLE_BITS * shape.numel()
        return bits_per_weight(shape, self.scheme, self.count(shape)) * shape.numel()

    def holds(self, shapes: Iterable[torch.Size]) -> bool:
        """Whether its blocks fit matrices of these shapes."""
        scheme = self.scheme
        if scheme is None or scheme.remainder == "block" or isinstance(scheme.block, str):
            return True
        height, width = scheme.block if isinstance(scheme.block, tuple) else (1, scheme.block)
        return all(rows % height == 0 and cols % width == 0 for rows, cols in shapes)


def weight_format(name: str) -> WeightFormat:
    """A format by its name. Raises StudfinderError for what is none."""
    plain, keeps, share = name.partition(KEEPS)
    kept = _share(share, name) if keeps else 0.0
    if plain == LEFT:
        if kept:
            raise StudfinderError(f"format {name[:40]!r}", expected=f"{LEFT} as it is: all of its numbers are kept")
        return WeightFormat(name=LEFT)
    made = format_named(plain)
    if made.inputs is not None or made.weights is None:
        raise StudfinderError(f"format {name[:40]!r} rounds inputs", expected="one that rounds weights alone")
    return WeightFormat(name=made.weights.name + keeps + share, scheme=made.weights, kept=kept)


def weight_formats(names: Sequence[str]) -> tuple[WeightFormat, ...]:
    """Formats by their names, each once. Raises StudfinderError for what is none, or if there are none."""
    if not names:
        raise StudfinderError("there are no formats", expected="at least one, e.g. int4-g64")
    return tuple({one.name: one for one in map(weight_format, names)}.values())


def group_size(lm: LM, group: Sequence[Target], chosen: WeightFormat) -> float:
    """Bits of a fused group in a format."""
    return sum(chosen.size(target.weight(lm).shape) for target in group)


def _share(text: str, name: str) -> float:
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not text.endswith("%") or not 0 < share < 0.5:
        raise StudfinderError(f"format {name[:40]!r}", expected="a share of the numbers after the +, as -keep0.05%")
    return share

"""Formats that a plan chooses from, and what they cost; their grammar: `records.scheme`.

Of a format that keeps a share of each matrix's numbers, those are kept whose rounding is predicted to cost most.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.quantizers.grid import fits
from studfinder.quantizers.scheme import bits_per_weight
from studfinder.quantizers.targets import Target
from studfinder.records.scheme import UNTOUCHED, Format, format_named

WHOLE_BITS = 16
"""Bits of a number that is left as it is, whatever dtype it is computed in: what checkpoints hold."""
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
    UNTOUCHED,
)
"""What is chosen from where nobody says."""


def kept_count(format: Format, shape: torch.Size) -> int:
    """How many numbers of a matrix (out, in) are kept."""
    return int(format.kept * shape.numel())


def matrix_size(format: Format, shape: torch.Size) -> float:
    """Bits of a matrix (out, in): elements, scales, zero points, kept numbers with their places."""
    if format.weights is None:
        return WHOLE_BITS * shape.numel()
    return bits_per_weight(shape, format.weights, kept_count(format, shape)) * shape.numel()


def fits_all(format: Format, shapes: Iterable[torch.Size]) -> bool:
    """Whether a format's blocks divide matrices of these shapes."""
    if format.weights is None or format.weights.remainder == "block":
        return True
    loose = replace(format.weights, remainder="block")  # with which none is refused
    return all(fits(shape, loose) for shape in shapes)


def candidate(name: str) -> Format:
    """A format that a plan may choose, by its name. Raises StudfinderError for what is none."""
    made = format_named(name)
    if made.inputs is not None:
        raise StudfinderError(f"format {name[:40]!r} rounds inputs", expected="one that rounds weights alone")
    return made


def candidates(names: Sequence[str]) -> tuple[Format, ...]:
    """The same of several, each once. Raises StudfinderError for what is none, or if there are none."""
    if not names:
        raise StudfinderError("there are no formats", expected="at least one, e.g. int4-g64")
    return tuple({one.name: one for one in map(candidate, names)}.values())


def group_size(lm: LM, group: Sequence[Target], format: Format) -> float:
    """Bits of a fused group in a format."""
    return sum(matrix_size(format, target.weight(lm).shape) for target in group)

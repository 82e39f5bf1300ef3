"""A quantised checkpoint as its packings see it: tensors by name, and the matrices that they make up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from studfinder.errors import StudfinderError
from studfinder.models.files import FLOATS, Held

WORDS, BYTES = ("I32",), ("U8",)
SCALES, EXPONENTS = tuple(FLOATS), ("U8", "F8_E8M0")
ANY_SCALES = (*SCALES, *EXPONENTS, "F8_E4M3")
"""Dtypes of codes and of scales, where they may be narrow themselves."""
Parts = Mapping[str, torch.Tensor]
"""The tensors of one matrix, by the last part of their names."""


@dataclass(frozen=True)
class PackedWeight:
    """A matrix that a checkpoint holds in several tensors.

    Attributes:
        parts: their names, by the last part of each.
        shape: of the matrix.
        kind: of its numbers, for print: "int4 in groups of 128".
        unpack: from the tensors to the matrix in a dtype.
        linear: whether its shape is (out, in) even where the model's own class wants it transposed.
    """

    parts: Mapping[str, str]
    shape: tuple[int, ...]
    kind: str
    unpack: Callable[[Parts, torch.dtype], torch.Tensor]
    linear: bool = False


@dataclass(frozen=True)
class PackedFiles:
    """A quantised checkpoint.

    Attributes:
        source: its name in print.
        settings: its quantization_config.
        held: its tensors, as the headers say.
        read: one of them.
    """

    source: str
    settings: Mapping[str, Any]
    held: Mapping[str, Held]
    read: Callable[[str], torch.Tensor]

    def modules(self, *leaves: str) -> list[str]:
        """What holds a tensor called so."""
        return sorted({name.rpartition(".")[0] for name in self.held if name.rpartition(".")[2] in leaves})

    def parts(self, of: str, needed: Iterable[str], optional: Iterable[str] = ()) -> dict[str, str]:
        """The tensors of a matrix, by what follows `of` in their names. Raises StudfinderError if a needed one is
        not there."""
        there = {end: f"{of}{end}" for end in (*needed, *optional) if f"{of}{end}" in self.held}
        if gone := [end for end in needed if end not in there]:
            holds = next(iter(there.values()), None) or next(name for name in self.held if name.startswith(of))
            raise StudfinderError(
                f"{self.source} holds {holds} but no {of}{gone[0]}",
                expected="every part of a quantised matrix",
                do="Download or save it again",
            )
        return {end.lstrip("._"): name for end, name in there.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor."""
        return self.held[name].shape

    def check(self, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...], of: str) -> None:
        """Raise StudfinderError if a tensor has another dtype or shape than its matrix asks for."""
        if self.held[name].dtype not in dtypes or self.shape(name) != shape:
            raise self.wrong(name, f"{' or '.join(dtypes)} of {_times(shape)} {of}")

    def wrong(self, name: str, expected: str) -> StudfinderError:
        """That a tensor is not as the config says."""
        return StudfinderError(
            f"tensor {name} of {self.source} is {self.held[name].dtype} of {_times(self.shape(name))}",
            expected=expected,
            do="The file is damaged, or its quantization_config is another checkpoint's",
        )

    def refused(self, what: str, expected: str) -> StudfinderError:
        """That a variant of a packing is not read here."""
        return StudfinderError(
            f"{self.source} is quantised with {what}, which is not read here",
            expected=expected,
            do="Load the model that it was made from",
        )


Packing = Callable[[PackedFiles], Iterator[tuple[str, PackedWeight]]]
"""Finds the matrices of one tool, by the names that the same tensors have where they are not quantised."""


def numbers(what: str, bits: int, size: int | None) -> str:
    """The numbers of a matrix in words, e.g. "int4 in groups of 128"."""
    return f"{what}{bits}" + (f" in groups of {size}" if size and size > 0 else "")


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"

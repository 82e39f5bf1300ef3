"""What a safetensors file holds, by its header: the only reader of one, with every check that the format asks for.

The format (https://github.com/huggingface/safetensors): 8 bytes of length, so many bytes of JSON, then the tensors,
end to end. What safetensors itself refuses is refused here, and a little more: keys that come twice, keys without a
meaning.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from studfinder.errors import StudfinderError

_LONGEST = 100_000_000
_LARGEST = 1 << 63
_AXES = 64  # of a torch tensor
_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}
"""Dtypes of whole bytes, by their names in safetensors files."""
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file.

    Attributes:
        dtype: its name in safetensors, e.g. "BF16".
        shape: its axes.
        begin, end: its bytes in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class _Bad(ValueError):
    """Why it is not a safetensors file, in words."""


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file, in the order they are stored.

    Raises:
        StudfinderError: it cannot be read, is cut off, goes on behind its last tensor, or its header is not sound.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length) if length <= min(size - 8, _LONGEST) else None
    except OSError as error:
        raise StudfinderError(f"{path} cannot be read ({error.strerror or error})") from None
    try:
        if text is None:
            raise _Bad(f"its header would be of {length:,} bytes")
        tensors = dict(_tensors(_parsed(text), 8 + length))
        end = max((stored.end for stored in tensors.values()), default=8 + length)
        if end != size:
            raise _Bad(f"its header says {end:,} bytes")
    except (ValueError, RecursionError) as error:  # _Bad, and what json says
        reason = str(error) if isinstance(error, _Bad) else "its header is no JSON"
        raise StudfinderError(
            f"{path} is truncated or damaged ({size:,} bytes: {reason})",
            expected="a whole safetensors file",
            do="Download or save it again",
        ) from None
    return tensors


def _parsed(text: bytes) -> dict[str, Any]:
    read = json.loads(
        text.decode("utf-8"), object_pairs_hook=_once, parse_int=_whole, parse_float=_no, parse_constant=_no
    )
    if not isinstance(read, dict):
        raise _Bad("its header is no table")
    return read


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) < len(pairs):
        raise _Bad("its header says something twice")
    for key, value in pairs:
        for text in (key, value):
            if isinstance(text, str):
                text.encode()  # half of a pair of surrogates is no text
    return read


def _whole(digits: str) -> int:
    if not digits.isdecimal() or len(digits) > 19 or int(digits) >= _LARGEST:
        raise _Bad(f"its header holds the number {digits[:24]}")
    return int(digits)


def _no(text: str) -> Any:
    raise _Bad(f"its header holds the number {text[:24]}")


def _tensors(header: dict[str, Any], start: int) -> Iterator[tuple[str, Stored]]:
    metadata = header.pop("__metadata__", None)
    if not (metadata is None or _table(metadata, str)):
        raise _Bad("its __metadata__ is no table of texts")
    entries = {name: _entry(name, value, start) for name, value in header.items()}
    end = start
    for name, stored in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if stored.begin != end or stored.end < stored.begin:
            raise _Bad(f"tensor {name[:80]!r} does not begin where the one before it ends")
        bits = math.prod(stored.shape) * _BITS[stored.dtype]
        if bits != 8 * (stored.end - stored.begin):
            raise _Bad(f"tensor {name[:80]!r} does not have the size of its shape")
        end = stored.end
        yield name, stored


def _table(value: Any, kind: type) -> bool:
    return isinstance(value, dict) and all(isinstance(one, kind) for one in value.values())


def _entry(name: str, value: Any, start: int) -> Stored:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _Bad(f"tensor {name[:80]!r} has no dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _Bad(f"tensor {name[:80]!r} is of an unknown dtype")
    if not _numbers(shape) or not _numbers(offsets) or len(offsets) != 2:
        raise _Bad(f"tensor {name[:80]!r} has a shape or data_offsets that are not numbers")
    if len(shape) > _AXES:
        raise _Bad(f"tensor {name[:80]!r} has {len(shape):,} axes")
    if math.prod(max(1, size) for size in shape) >= _LARGEST:
        raise _Bad(f"tensor {name[:80]!r} has a shape beyond all numbers")
    return Stored(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, int) and not isinstance(one, bool) for one in value)

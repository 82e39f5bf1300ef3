"""What a safetensors file holds, by its header: the only reader of one.

The format (https://github.com/huggingface/safetensors): 8 bytes of length, so many bytes of JSON, then the tensors,
end to end. What is sound safetensors itself says; refused here is a little more: keys that come twice, keys without a
meaning, shapes that no tensor of torch has.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from studfinder.errors import StudfinderError, in_a_line

_LARGEST = 1 << 63
_AXES = 64  # of a torch tensor
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


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file, in the order they are stored.

    Raises:
        StudfinderError: it cannot be read, is cut off, goes on behind its last tensor, or its header is not sound.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            with safe_open(path, framework="np"):  # which checks all of it
                file.seek(0)
                start = 8 + int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(start - 8).decode("utf-8"), object_pairs_hook=_once)
        header.pop("__metadata__", None)
        tensors = [(name, _stored(name, entry, start)) for name, entry in header.items()]
    except OSError as error:
        raise StudfinderError(f"{path} cannot be read ({error.strerror or error})") from None
    except (SafetensorError, ValueError) as error:
        raise StudfinderError(
            f"{path} is truncated or damaged ({size:,} bytes: {in_a_line(error)})",
            expected="a whole safetensors file",
            do="Download or save it again",
        ) from None
    return dict(sorted(tensors, key=lambda item: (item[1].begin, item[1].end)))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) < len(pairs):
        raise ValueError("its header says something twice")
    return read


def _stored(name: str, entry: dict[str, Any], start: int) -> Stored:
    if len(entry) > 3:
        raise ValueError(f"tensor {name[:80]!r} has more than dtype, shape and data_offsets")
    shape = tuple(entry["shape"])
    if len(shape) > _AXES or math.prod(max(1, size) for size in shape) >= _LARGEST:
        raise ValueError(f"tensor {name[:80]!r} has a shape beyond all tensors")
    begin, end = entry["data_offsets"]
    return Stored(entry["dtype"], shape, start + begin, start + end)

"""Write a checkpoint tensor by tensor: memory of one tensor, shards that survive an interruption, all or nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from studfinder.errors import StudfinderError
from studfinder.models.headers import DTYPE_NAMES
from studfinder.runs import TEMPORARY, write_text


@dataclass(frozen=True)
class TensorGroup:
    """Tensors that are made together: their names with dtypes and shapes, known beforehand, and how to make them."""

    described: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    make: Callable[[], Mapping[str, torch.Tensor]]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(_bytes(dtype, shape) for dtype, shape in self.described.values())


def write_shard(
    path: Path, entries: Sequence[TensorGroup], done: Callable[[TensorGroup], Any] = lambda entry: None
) -> None:
    """Write a safetensors file, one entry after the other; only one entry's tensors are in memory at a time.

    The header comes first and needs no tensor, because what will be made is described beforehand. The file appears
    under its name when it is whole.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        for name, (dtype, shape) in entry.described.items():
            start, end = end, end + _bytes(dtype, shape)
            header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f".shard{TEMPORARY}")  # a name of its own: that of the shard may be as long as names go
    try:
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for entry in entries:
                _write_entry(file, entry)
                done(entry)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StudfinderError(
            f"{path} cannot be written ({error.strerror or error})", do="What was there before is untouched"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def shards(entries: Iterable[TensorGroup], limit: int = 5_000_000_000) -> list[list[TensorGroup]]:
    """Entries in files of at most `limit` bytes."""
    files: list[list[TensorGroup]] = [[]]
    used = 0
    for entry in entries:
        if files[-1] and used + entry.size > limit:
            files.append([])
            used = 0
        files[-1].append(entry)
        used += entry.size
    return files


def write_index(folder: Path, files: Mapping[str, Sequence[TensorGroup]]) -> None:
    """The index that maps tensors to files; none is needed for a single file called model.safetensors."""
    if list(files) == ["model.safetensors"]:
        return
    places = {name: file for file, entries in files.items() for entry in entries for name in entry.described}
    total = sum(entry.size for entries in files.values() for entry in entries)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    write_text(folder / "model.safetensors.index.json", json.dumps(index, indent=1))


def _write_entry(file: Any, entry: TensorGroup) -> None:
    made = entry.make()
    for name, (dtype, shape) in entry.described.items():
        tensor = made[name]
        if tensor.dtype != dtype or tuple(tensor.shape) != tuple(shape):
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, described as {dtype} {tuple(shape)}")
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        if flat.stride(0) != 1:  # one number of a slice counts as contiguous whatever its stride
            flat = flat.clone(memory_format=torch.contiguous_format)
        flat = flat.view(torch.uint8)
        file.write(flat.numpy().data)


def _bytes(dtype: torch.dtype, shape: Sequence[int]) -> int:
    return torch.Size(shape).numel() * dtype.itemsize

"""Write a checkpoint tensor by tensor: memory of one tensor, shards that survive an interruption, all or nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from studfinder.errors import StudfinderError
from studfinder.runs import write_text

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
DTYPES = {name: dtype for dtype, name in _NAMES.items()}
"""Dtypes by their names in safetensors files."""
_LEDGER = "studfinder-partial.json"


@dataclass(frozen=True)
class Entry:
    """Tensors that are made together: their names with dtypes and shapes, known beforehand, and how to make them."""

    described: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    make: Callable[[], Mapping[str, torch.Tensor]]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(_bytes(dtype, shape) for dtype, shape in self.described.values())


def write_shard(path: Path, entries: Sequence[Entry], done: Callable[[Entry], Any] = lambda entry: None) -> None:
    """Write a safetensors file, one entry after the other; only one entry's tensors are in memory at a time.

    The header comes first and needs no tensor, because what will be made is described beforehand. The file appears
    under its name when it is whole.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        for name, (dtype, shape) in entry.described.items():
            start, end = end, end + _bytes(dtype, shape)
            header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f".{path.name}.tmp")
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


def shards(entries: Iterable[Entry], limit: int = 5_000_000_000) -> list[list[Entry]]:
    """Entries in files of at most `limit` bytes."""
    files: list[list[Entry]] = [[]]
    used = 0
    for entry in entries:
        if files[-1] and used + entry.size > limit:
            files.append([])
            used = 0
        files[-1].append(entry)
        used += entry.size
    return files


def write_index(folder: Path, files: Mapping[str, Sequence[Entry]]) -> None:
    """The index that maps tensors to files; none is needed for a single file called model.safetensors."""
    if list(files) == ["model.safetensors"]:
        return
    places = {name: file for file, entries in files.items() for entry in entries for name in entry.described}
    total = sum(entry.size for entries in files.values() for entry in entries)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    write_text(folder / "model.safetensors.index.json", json.dumps(index, indent=1))


@contextmanager
def staged(
    out: Path, settings: Mapping[str, Any], overwrite: bool = False, *, resumable: bool = True
) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` when the block ends well; until then `out` is what it was.

    After an interruption the staged folder stays if it is resumable, and the same settings continue with the shards
    it holds; other settings begin anew. After a user's mistake it is removed.

    Raises:
        StudfinderError: `out` exists and is not to be replaced, or the place cannot be written.
    """
    check_free(out, overwrite)
    stage = out.with_name(f".{out.name}.partial")
    plain = json.loads(json.dumps(dict(settings), default=str))
    if _ledger(stage) != plain:
        shutil.rmtree(stage, ignore_errors=True)
    try:
        stage.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudfinderError(f"folder {out} cannot be made ({error.strerror})") from None
    write_text(stage / _LEDGER, json.dumps(plain))
    try:
        yield stage
    except BaseException as error:
        if isinstance(error, StudfinderError) or not resumable:  # nothing of it can be used again
            shutil.rmtree(stage, ignore_errors=True)
        raise
    (stage / _LEDGER).unlink()
    _put_in_place(stage, out)


def check_free(out: Path, overwrite: bool) -> None:
    """Raise StudfinderError if `out` exists and must not be replaced.

    A process that was killed between moving the old folder aside and putting the new one in its place left the old one
    beside it: that is undone first.
    """
    out = out.absolute()  # "." has no name of its own
    old = _aside(out)
    if old.is_dir() and not out.exists():
        old.rename(out)
    if out.is_file() or out.is_symlink():
        raise StudfinderError(f"--out {out} is a file", expected="a folder that does not exist yet")
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise StudfinderError(f"folder {out} exists", do="Choose another --out, or replace it with --overwrite")
    if not (out / "config.json").is_file():
        raise StudfinderError(
            f"folder {out} is no checkpoint, so it is not replaced",
            expected="a config.json in it",
            do="Choose another --out",
        )


def _put_in_place(stage: Path, out: Path) -> None:
    old = _aside(out)
    shutil.rmtree(old, ignore_errors=True)
    there = out.exists()
    if there:
        out.rename(old)
    try:
        stage.rename(out)
    except BaseException:
        if there and not out.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _aside(out: Path) -> Path:
    return out.with_name(f".{out.name}.old")


def _ledger(stage: Path) -> Any:
    try:
        return json.loads((stage / _LEDGER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write_entry(file: Any, entry: Entry) -> None:
    made = entry.make()
    for name, (dtype, shape) in entry.described.items():
        tensor = made[name]
        if tensor.dtype != dtype or tuple(tensor.shape) != tuple(shape):
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, described as {dtype} {tuple(shape)}")
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        file.write(flat.numpy().data)


def _bytes(dtype: torch.dtype, shape: Sequence[int]) -> int:
    return torch.Size(shape).numel() * dtype.itemsize

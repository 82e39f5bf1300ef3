"""The files of a checkpoint folder: which are read, whether they are whole, and what their headers say they hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from studfinder.errors import StudfinderError
from studfinder.records.outside import irregular, read_json

ADAPTER = "adapter_config.json"
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Held:
    """A tensor as its file's header describes it.

    Attributes:
        dtype: its name in safetensors, e.g. "BF16".
        shape: its axes.
        file: the name of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    file: str


def check_folder(folder: Path, allow_pickle: bool) -> dict[str, Held]:
    """Say what is wrong with a checkpoint folder before transformers says it in a traceback, or says nothing; gives
    what its files hold.

    Raises:
        StudfinderError: no config, no weights, a pipe or a dangling link, pickles that are not allowed, a file that is
            cut off, a shard or a tensor that the index names and that is not there, a tensor in two shards.
    """
    check_regular(folder)
    _json(folder / "config.json", missing="a Hugging Face checkpoint folder")
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        pickles = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
        if pickles and not allow_pickle:
            raise StudfinderError(
                f"{folder} holds only pickle weights ({pickles[0].name}), which can run code as they load",
                expected="safetensors",
                do="Convert it, or allow pickles (--allow-pickle) if you trust its author",
            )
        if not pickles:
            raise StudfinderError(f"folder {folder} has no weights", expected="*.safetensors beside config.json")
    for shard in shards:
        read_header(shard)
    return held_in(folder)


def check_regular(folder: Path) -> None:
    """Raise StudfinderError if something in a folder is no file that ends: whoever opens a pipe waits for ever, and a
    link to nothing is passed by as if it were not there."""
    for path in sorted(folder.iterdir()):
        if not path.is_dir() and (kind := irregular(path)) is not None:
            raise StudfinderError(f"{path} is {kind}", expected="a file", do="Delete it, or put the file there")


def held_in(folder: Path) -> dict[str, Held]:
    """What the files hold that transformers reads from this folder, by tensor name; of pickles, too.

    Raises:
        StudfinderError: a shard or a tensor that the index names is not there, a tensor is in two shards, or the
            weights are there twice, in one file and in shards.
    """
    index = folder / _INDEX
    if (folder / _SINGLE).is_file():
        _check_no_second_copy(folder, index)
        return _held(folder, [folder / _SINGLE])
    if index.is_file():
        return _indexed(folder, _json(index).get("weight_map"))
    named = sorted(folder.glob("model-*-of-*.safetensors"))
    if named:
        raise StudfinderError(
            f"{folder} holds shards ({named[0].name}, ...) but no {_INDEX} that says what is in them",
            do="Download or save it again, with the index",
        )
    pickles = sorted(folder.glob("pytorch_model*.bin"))
    return {
        name: Held(_SHORT.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape), path.name)
        for path in pickles
        for name, tensor in torch.load(path, map_location="meta", weights_only=True).items()
        if isinstance(tensor, torch.Tensor)
    }


def _indexed(folder: Path, where: Any) -> dict[str, Held]:
    if not isinstance(where, dict) or not where or not all(isinstance(file, str) for file in where.values()):
        raise StudfinderError(f"{folder / _INDEX} has no weight_map", do="Download or save it again")
    files = sorted(set(where.values()))
    lost = [file for file in files if Path(file).name != file or not (folder / file).is_file()]
    if lost:
        gone = sorted(name for name, file in where.items() if file in lost)
        raise StudfinderError(
            f"{folder} lacks {some(lost)}, which its index names for {len(gone):,} tensors ({some(gone)})",
            do="Download or save that shard again",
        )
    held = _held(folder, [folder / file for file in files])
    gone = sorted(set(where) - set(held))
    if gone:
        raise StudfinderError(
            f"the shards of {folder} lack {some(gone)}, which the index says are in {where[gone[0]]}",
            do="A shard is of another version of the model: download or save all of them again",
        )
    return held


def _check_no_second_copy(folder: Path, index: Path) -> None:
    if not index.is_file():
        return
    where = _json(index).get("weight_map")
    shards = sorted({str(file) for file in where.values()} - {_SINGLE}) if isinstance(where, dict) else []
    there = [file for file in shards if (folder / file).is_file()]
    if there:
        raise StudfinderError(
            f"{folder} holds weights twice: in {_SINGLE} and, by its index, in {some(there)}",
            expected="one of the two",
            do="Delete the one that is left over from an earlier save",
        )


def _held(folder: Path, files: list[Path]) -> dict[str, Held]:
    held: dict[str, Held] = {}
    for path in files:
        for name, entry in read_header(path).items():
            if name in held:
                raise StudfinderError(
                    f"tensor {name} is in two shards of {folder}, {held[name].file} and {path.name}",
                    expected="one of the two",
                    do="Download or save the checkpoint again",
                )
            held[name] = Held(str(entry["dtype"]), tuple(entry["shape"]), path.name)
    return held


def read_header(path: Path) -> Mapping[str, Any]:
    """The header of a safetensors file, without its metadata. Raises StudfinderError if the file is cut off."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length)) if 8 + length <= size else None
        except ValueError:
            header = None
    entries = {name: entry for name, entry in (header or {}).items() if name != "__metadata__"}
    end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    if header is None or end != size:
        raise StudfinderError(
            f"{path} is truncated or damaged ({size:,} bytes)",
            expected=f"{end:,} bytes" if header else "a safetensors header",
            do="Download or save it again",
        )
    return entries


def some(names: Any, shown: int = 3) -> str:
    """The first names, and how many more there are."""
    ordered = sorted(map(str, names))
    rest = len(ordered) - shown
    return ", ".join(ordered[:shown]) + (f" and {rest:,} more" if rest > 0 else "")


def _json(path: Path, missing: str | None = None) -> dict[str, Any]:
    if missing is not None and not path.is_file():
        raise StudfinderError(f"folder {path.parent} has no {path.name}", expected=missing)
    return read_json(path)


_SHORT = {
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
}
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The float dtypes that hold a weight as it is, by their names in safetensors; fp8 and narrower need a scale."""

"""The files of a checkpoint folder: which are read, whether they are whole, and what their headers say they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from studfinder.errors import StudfinderError, in_a_line
from studfinder.models.classes import diffusion
from studfinder.models.headers import DTYPE_NAMES, DTYPES, read_header
from studfinder.models.inside import check_distinct, check_links, inside, plain_name
from studfinder.records.outside import irregular, read_json

ADAPTER = "adapter_config.json"
PIPELINE = "model_index.json"
SAFE = ".safetensors"
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_KINDS = (SAFE, ".bin", ".pt", ".pth")
_TOKENIZER = "tokenizer_config.json"


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


@dataclass(frozen=True)
class WeightFiles:
    """The weight files that transformers reads of a folder.

    Attributes:
        files: their names, which are plain, each once.
        index: the name of the index that names them, where there is one.
        where: by the index, the file of each tensor.
    """

    files: tuple[str, ...]
    index: str | None = None
    where: Mapping[str, str] = field(default_factory=dict)

    @property
    def pickles(self) -> list[str]:
        """Those that are not safetensors: transformers hands every other file to torch.load."""
        return [name for name in self.files if not name.endswith(SAFE)]


def check_folder(folder: Path, allow_pickle: bool) -> dict[str, Held]:
    """Say what is wrong with a checkpoint folder before transformers says it in a traceback, or says nothing; gives
    what its files hold.

    Raises:
        StudfinderError: no config, no weights, a pipe or a dangling link, pickles that are not allowed, a file that is
            cut off or damaged, a shard that the index names and that is not there, a tensor in two shards, a name that
            leads out of the folder.
    """
    check_regular(folder)
    check_names(folder)
    if not (folder / "config.json").is_file():
        if (folder / PIPELINE).is_file():
            raise diffusion(str(folder), read_json(folder / PIPELINE).get("_class_name"))
        raise StudfinderError(f"folder {folder} has no config.json", expected="a Hugging Face checkpoint folder")
    read_json(folder / "config.json")
    weights = weights_of(folder)
    if weights.pickles and not allow_pickle:
        only = "only pickle weights" if weights.pickles == list(weights.files) else "pickle weights"
        raise pickle_refused(
            f"{folder} holds {only} ({weights.pickles[0]}), which can run code as they load", "safetensors"
        )
    return held_in(folder)


def check_names(folder: Path) -> None:
    """Raise StudfinderError if a link in a folder leads out of it, or its tokenizer's config names a file elsewhere."""
    check_links(folder)
    names = read_json(folder / _TOKENIZER).get("fast_tokenizer_files") if (folder / _TOKENIZER).is_file() else None
    for name in names if isinstance(names, list) else ():
        inside(folder, plain_name(name, folder / _TOKENIZER))


def weights_of(folder: Path) -> WeightFiles:
    """The weight files that transformers reads of a folder: what the config names, one file, or those of an index;
    pickles where there are no safetensors. Other copies may lie beside them.

    Raises:
        StudfinderError: there are none, a name in the config or the index is not a plain one, or an index is damaged.
    """
    config = folder / "config.json"
    chosen = read_json(config).get("transformers_weights") if config.is_file() else None
    if chosen is not None:
        plain_name(chosen, config)
        if not (folder / chosen).is_file():
            raise StudfinderError(f"{config} says that the weights are in {chosen}, which is not there")
    else:
        chosen = next((name for name in (_SINGLE, _INDEX, *_PICKLES) if (folder / name).is_file()), None)
    if chosen is None:
        raise _no_weights(folder)
    inside(folder, chosen)
    if not chosen.endswith(".index.json"):
        return WeightFiles((chosen,))
    index = read_json(folder / chosen)
    where = index.get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(file, str) for file in where.values()):
        raise StudfinderError(f"{folder / chosen} has no weight_map", do="Download or save it again")
    if "metadata" not in index:
        what = f"{folder / chosen} has no metadata, which transformers reads"
        raise StudfinderError(what, do='Add "metadata": {} to it')
    files = sorted(set(where.values()))
    for name in files:
        plain_name(name, folder / chosen)
        if not name.endswith(_KINDS):
            raise StudfinderError(f"{folder / chosen} names weights {name!a}", expected=f"names that end in {SAFE}")
        inside(folder, name)
    check_distinct(files, folder / chosen)
    return WeightFiles(tuple(files), chosen, where)


def _no_weights(folder: Path) -> StudfinderError:
    named = sorted(folder.glob("model-*-of-*.safetensors"))
    if named:
        return StudfinderError(
            f"{folder} holds shards ({named[0].name}, ...) but no {_INDEX} that says what is in them",
            do="Download or save it again, with the index",
        )
    others = sorted(path.name for kind in ("*.safetensors", "*.bin", "*.pt", "*.pth") for path in folder.glob(kind))
    return StudfinderError(
        f"folder {folder} has no weights that transformers reads" + (f" (it holds {some(others)})" if others else ""),
        expected=f"{_SINGLE}, or {_INDEX} with its shards, beside config.json",
    )


def check_regular(folder: Path) -> None:
    """Raise StudfinderError if something in a folder is no file that ends: whoever opens a pipe waits for ever, and a
    link to nothing is passed by as if it were not there."""
    for path in sorted(folder.iterdir()):
        if not path.is_dir() and (kind := irregular(path)) is not None:
            raise StudfinderError(f"{path} is {kind}", expected="a file", do="Delete it, or put the file there")


def held_in(folder: Path) -> dict[str, Held]:
    """What the files hold that transformers reads from this folder, by tensor name; of pickles, too.

    Raises:
        StudfinderError: as `weights_of`; a file is damaged, a shard that the index names is not there, a tensor is in
            two shards, or the weights are there twice, in one file and in shards.
    """
    weights = weights_of(folder)
    if weights.files == (_SINGLE,) and weights.index is None:
        _check_no_second_copy(folder, folder / _INDEX)
    lost = [file for file in weights.files if not (folder / file).is_file()]
    if lost:
        gone = sorted(name for name, file in weights.where.items() if file in lost)
        raise StudfinderError(
            f"{folder} lacks {some(lost)}, which its index names for {len(gone):,} tensors ({some(gone)})",
            do="Download or save that shard again",
        )
    held: dict[str, Held] = {}
    for file in weights.files:
        for name, one in _held(folder / file).items():
            if name in held:
                raise StudfinderError(
                    f"tensor {name} is in two shards of {folder}, {held[name].file} and {file}",
                    expected="one of the two",
                    do="Download or save the checkpoint again",
                )
            held[name] = one
    return held


def _held(path: Path) -> dict[str, Held]:
    if path.name.endswith(SAFE):
        return {name: Held(one.dtype, one.shape, path.name) for name, one in read_header(path).items()}
    read = read_pickle(path, "meta")
    return {
        name: Held(DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape), path.name)
        for name, tensor in (read.items() if isinstance(read, dict) else ())
        if isinstance(tensor, torch.Tensor)
    }


def read_pickle(path: Path, device: str | None = None) -> Any:
    """What a pickle of torch holds, if that can be read without running code."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch and pickle raise many kinds; the user needs one line
        raise StudfinderError(f"{path} cannot be read without running code ({in_a_line(error)})") from None


def pickle_refused(what: str, expected: str) -> StudfinderError:
    """Pickles are there, and nobody allowed them."""
    return StudfinderError(
        what,
        expected=expected,
        do="Convert it, or, if you trust its author, allow pickles: scan, measure and quantize have --allow-pickle",
    )


def _check_no_second_copy(folder: Path, index: Path) -> None:
    if not index.is_file():
        return
    where = read_json(index).get("weight_map")
    shards = sorted({str(file) for file in where.values()} - {_SINGLE}) if isinstance(where, dict) else []
    there = [file for file in shards if (folder / file).is_file()]
    if there:
        raise StudfinderError(
            f"{folder} holds weights twice: in {_SINGLE} and, by its index, in {some(there)}",
            expected="one of the two",
            do="Delete the one that is left over from an earlier save",
        )


def some(names: Any, shown: int = 3) -> str:
    """The first names, and how many more there are."""
    ordered = sorted(map(str, names))
    rest = len(ordered) - shown
    return ", ".join(ordered[:shown]) + (f" and {rest:,} more" if rest > 0 else "")


FLOATS = {name: DTYPES[name] for name in ("F64", "F32", "F16", "BF16")}
"""The float dtypes that hold a weight as it is, by their names in safetensors; fp8 and narrower need a scale."""

"""A checkpoint whose tensors transformers converts as it loads them, written once in its model's own names.

transformers 5 stacks the matrices of experts, splits fused ones and turns others while it loads, and what it makes is
in memory; what it takes as it is stays mapped from the file. So the checkpoint is written to the cache as its model has
it, by transformers' own converters, one converter's tensors at a time; loaded from there, all of it is mapped.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from studfinder.errors import WriteFailed
from studfinder.models.beside import put_beside
from studfinder.models.cache import keep_private, private_folder, private_text
from studfinder.models.files import held_in, weights_of
from studfinder.models.fingerprint import marks
from studfinder.models.headers import DTYPES
from studfinder.models.lm import Source
from studfinder.models.loading import destinations
from studfinder.records.outside import read_json
from studfinder.visible import say

_FORMAT = 1  # part of the folder's name: raise it when what is written changes
_MARKS = "studfinder-marks.json"
_SHARD = 5_000_000_000
_ROOM = 1 << 30
"""What is left free on the disk."""


@dataclass(frozen=True)
class OwnTensors:
    """Tensors of a model that come from the same tensors of its files.

    Attributes:
        sources: those of the files.
        described: the model's by name, without numbers.
        make: gives them, told how a tensor of the files is read.
        plain: whether it is one that transformers takes as it is.
    """

    sources: tuple[str, ...]
    described: Mapping[str, torch.Tensor]
    make: Callable[[Callable[[str], torch.Tensor]], dict[str, torch.Tensor]]
    plain: bool

    @property
    def size(self) -> int:
        return sum(one.numel() * one.element_size() for one in self.described.values())


def in_own_names(folder: Path, model: Any) -> Path:
    """A folder with the same checkpoint in the names and shapes of its model's tensors, so that loading it converts
    nothing: in the cache, written if it is not there. The given folder itself where transformers converts nothing, and
    where it cannot (loading says why).

    Dtypes stay as they are stored. What no tensor of the model is made of is left out. A checkpoint has one such folder
    at a time: it is written anew when its files, its config or transformers have changed, or when somebody has touched
    it. Memory: one converter's tensors (all experts' gate and up of a layer, say), twice while they are joined.

    Args:
        folder: a whole checkpoint.
        model: of its config, with or without numbers.

    Raises:
        StudfinderError: the folder's index is damaged, or others can write to the cache.
        WriteFailed: the disk has too little room.
    """
    if weights_of(folder).pickles or getattr(model, "hf_quantizer", None) is not None:
        return folder
    held = held_in(folder)
    groups = [] if any(one.dtype not in DTYPES for one in held.values()) else own_tensors(model, held)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    described = {name: one for group in groups for name, one in group.described.items()}
    fits = all(shapes.get(name) == one.shape for name, one in described.items())
    if all(group.plain for group in groups) or not fits:
        return folder
    again = own_tensors(model, described)
    if len(again) < len(described) or not all(group.plain for group in again):
        return folder  # transformers would convert the model's own names once more
    size = sum(group.size for group in groups)
    what = f"{folder} in its model's own names, {size / 1e9:,.2f} GB"
    return written_once("own-names", folder, "", size, what, lambda stage: _write(folder, held, groups, stage))


def written_once(kind: str, folder: Path, also: str, size: int, what: str, write: Callable[[Path], None]) -> Path:
    """What is made of a checkpoint's files and kept in the cache until they change; written if it is not there.

    Args:
        kind: its folder in the cache.
        also: what it follows from beside the files, their config and transformers.
        size: bytes, and `what` in words, for print.
        write: fills a folder; its config.json and what lies beside the weights are put there behind it.

    Raises:
        StudfinderError: others can write to the cache.
        WriteFailed: the disk has too little room.
    """
    place = private_folder(kind)
    source = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    made = place / f"{source}-{_key(folder, also)}"
    with FileLock(place / f"{source}.lock", mode=0o600):
        if not _as_made(made):
            for other in (*place.glob(f"{source}-*"), *place.glob(f".{source}.*")):  # outdated, or of a killed process
                shutil.rmtree(other)
            free = shutil.disk_usage(place).free
            if free < size + _ROOM:
                raise WriteFailed(
                    f"there is no room for {what}, in {place}: {free / 1e9:,.2f} GB are free",
                    do="Make room, or set STUDFINDER_CACHE to a folder on a larger disk",
                )
            say(f"studfinder: writing {what}, to {made} ({free / 1e9:,.0f} GB free), once", file=sys.stderr)
            with tempfile.TemporaryDirectory(prefix=f".{source}.", dir=place) as work:
                stage = Path(work) / "model"
                stage.mkdir(mode=0o700)
                write(stage)
                _seal(folder, stage)
                stage.replace(made)
    return made


def own_tensors(model: Any, held: Mapping[str, Any]) -> list[OwnTensors]:
    """What is made of the tensors of files, found by having transformers convert tensors without numbers; nothing if it
    cannot. What no tensor of the model is made of is left out.

    Args:
        held: tensors of the files by name, or what headers say of them.
    """
    state = model.state_dict()
    sources: dict[str, list[tuple[str, Any]]] = {}
    for name, (target, step) in destinations(model, held).items():
        if target in state:
            sources.setdefault(target, []).append((name, step))
    empty = {
        name: torch.empty(one.shape, dtype=DTYPES.get(one.dtype, one.dtype), device="meta")
        for name, one in held.items()
    }
    found = []
    for target, parts in sources.items():

        def make(read: Callable[[str], torch.Tensor], target: str = target, parts: list = parts) -> dict[str, Any]:
            first, step = parts[0]
            if step is None:
                return {target: read(first)}
            converter = copy.deepcopy(step[0])
            for name, own in parts:
                if own is not None:
                    converter.add_tensor(target, name, own[1], read(name))
            made = converter.convert(target, model=model, config=model.config)
            return {name: one[0] if isinstance(one, list) else one for name, one in made.items()}

        try:
            described = make(empty.__getitem__)
        except Exception:  # operations raise many kinds for tensors that do not belong together
            return []
        names = tuple(name for name, _ in parts)
        found.append(OwnTensors(names, described, make, described.get(target) is empty[names[0]]))
    return found


def _key(folder: Path, also: str) -> str:
    """What the converted tensors follow from: the files, the config, and whose conversion it is."""
    import transformers

    files = [[name, marks(folder / name)] for name in weights_of(folder).files]
    config = (folder / "config.json").read_text(encoding="utf-8")
    text = json.dumps([_FORMAT, transformers.__version__, config, files, *filter(None, [also])])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _write(folder: Path, held: Mapping[str, Any], groups: Iterable[OwnTensors], stage: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file
    from transformers.utils.logging import tqdm

    # Every converter's tensors have a file of their own, and are let go before the next; the others are mapped, and
    # take no memory.
    shards: list[list[OwnTensors]] = [[group] for group in groups if not group.plain]
    size = _SHARD
    for group in groups:
        if group.plain:
            if size + group.size > _SHARD:
                shards.append([])
                size = 0
            shards[-1].append(group)
            size += group.size
    where: dict[str, str] = {}
    with ExitStack() as stack:
        files = {
            file: stack.enter_context(safe_open(folder / file, framework="pt"))
            for file in {one.file for one in held.values()}
        }
        for number, shard in enumerate(tqdm(shards, desc="Writing weights in their model's own names")):
            file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
            tensors = {
                name: one.contiguous()
                for group in shard
                for name, one in group.make(lambda name: files[held[name].file].get_tensor(name)).items()
            }
            save_file(tensors, stage / file, metadata={"format": "pt"})
            where |= dict.fromkeys(tensors, file)
            del tensors
    index_shards(stage, where, sum(group.size for group in groups))


def index_shards(stage: Path, where: Mapping[str, str], size: int) -> None:
    """The index of shards: the file of each tensor, and how many bytes all of them have."""
    index = {"metadata": {"total_size": size}, "weight_map": dict(where)}
    private_text(stage / "model.safetensors.index.json", json.dumps(index))


def _seal(folder: Path, stage: Path) -> None:
    """The config and all else that belongs to weights that were written anew, and the marks of all of it."""
    gone = ("transformers_weights", "quantization_config")
    config = {name: value for name, value in read_json(folder / "config.json").items() if name not in gone}
    private_text(stage / "config.json", json.dumps(config))
    put_beside(Source(str(folder), "a local folder", folder), stage)
    for path in stage.rglob("*"):
        keep_private(path)
    private_text(stage / _MARKS, json.dumps(_marks(stage)))


def _marks(folder: Path) -> dict[str, Any]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _MARKS)
    return {path.relative_to(folder).as_posix(): marks(path) for path in paths}


def _as_made(folder: Path) -> bool:
    """Whether a folder is there, and nothing in it was touched since it was made."""
    with suppress(OSError, ValueError, RecursionError):
        return bool(json.loads((folder / _MARKS).read_text(encoding="utf-8")) == _marks(folder))
    return False

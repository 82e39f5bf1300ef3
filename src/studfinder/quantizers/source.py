"""A checkpoint on disk as it is quantised without its numbers in memory: where its tensors are, which are targets."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from studfinder.errors import StudfinderError
from studfinder.models import LM, Source, anatomy_of
from studfinder.models.converted import OwnTensors, own_tensors
from studfinder.models.files import check_folder, weights_of
from studfinder.models.headers import DTYPES, Stored, read_header
from studfinder.models.pretrained import commit_in, without_numbers
from studfinder.quantizers.targets import Target, targets
from studfinder.records.outside import read_json


@dataclass(frozen=True)
class Files:
    """A folder of safetensors.

    Attributes:
        folder: where they are.
        shards: file names, each with its tensors in the order they are stored, or what is made of them.
        targets: the matrices to quantise, by parameter name.
        cast: the dtypes that tensors are loaded in, where those are others than they are stored in.
        source: of what is made the tensors that it is made of.
    """

    folder: Path
    shards: Mapping[str, Mapping[str, Stored | OwnTensors]]
    targets: Mapping[str, Target] = field(default_factory=dict)
    cast: Mapping[str, torch.dtype] = field(default_factory=dict)
    source: Files | None = None

    @cached_property
    def stored(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Dtype, as it is read, and shape of every tensor."""
        found = {}
        for tensors in self.shards.values():
            for name, one in tensors.items():
                if isinstance(one, OwnTensors):
                    dtype, shape = one.described[name].dtype, tuple(one.described[name].shape)
                else:
                    dtype, shape = DTYPES[one.dtype], one.shape
                found[name] = self.cast.get(name, dtype), shape
        return found

    @cached_property
    def places(self) -> dict[str, str]:
        """In which file each tensor is."""
        return {name: file for file, tensors in self.shards.items() for name in tensors}

    def read(self, name: str) -> torch.Tensor:
        """One tensor, read from its place: opening a file with safetensors reads its whole header each time, and a
        mapping that stays open counts as memory.

        Raises:
            StudfinderError: the file ends before the tensor does.
        """
        shard, (dtype, shape) = self.places[name], self.stored[name]
        path, place = self.folder / shard, self.shards[shard][name]
        if isinstance(place, OwnTensors):
            assert self.source is not None
            return place.make(self.source.read)[name].contiguous().to(dtype)
        held = torch.empty(torch.Size(shape).numel(), dtype=DTYPES[place.dtype])
        with path.open("rb", buffering=0) as file:
            file.seek(place.begin)
            found = file.readinto(held.view(torch.uint8).numpy().data) if held.numel() else 0
        if found != held.numel() * held.itemsize:
            raise StudfinderError(f"{path} ends within {name}", expected="a whole file", do="Copy it again")
        return held.view(shape).to(dtype)

    def matrix_shape(self, name: str) -> tuple[int, ...]:
        """(out, in) of a target."""
        shape = self.stored[name][1]
        return shape[::-1] if self.targets[name].ref.transposed else shape


def open_files(source: Source, folder: Path) -> tuple[LM, Files] | None:
    """The model of a checkpoint folder without its numbers, and its files, with tensors under the names that a
    quantised checkpoint has them by. None where a matrix is made of several stored ones, or is a part of one.

    Args:
        source: of the model, for print and the record.
        folder: all of its files.

    Raises:
        StudfinderError: as `load` and `targets`; it is quantised already.
    """
    check_folder(folder, allow_pickle=False)
    config = read_json(folder / "config.json")
    if any(isinstance(part, dict) and part.get("quantization_config") for part in (config, *config.values())):
        raise StudfinderError(f"{source.id} is quantised already", do="Start from the full model")
    model, _ = without_numbers(replace(source, folder=folder))
    if source.folder is None:
        source = replace(source, revision=commit_in(folder) or source.revision)
    lm = LM(model.eval(), None, anatomy_of(model), source)
    found = {target.name: target for target in targets(lm, offloaded=True)}
    files = _as_loaded(model, stored_files(folder), found)
    if not set(found) <= set(files.stored):
        return None
    loaded = {name: model.get_parameter(target.ref.parameter).dtype for name, target in found.items()}
    # What is cast as it is loaded is rounded as it is cast.
    cast = {name: dtype for name, dtype in loaded.items() if files.stored[name][0] is not dtype}
    return lm, replace(files, targets=found, cast=cast)


def _as_loaded(model: nn.Module, files: Files, found: Collection[str]) -> Files:
    """Files with their tensors as the model has them, if it has the matrices `found` under other names, or more is
    converted than experts: transformers does not convert what is left whole beside what is compressed."""
    held = {name: one for tensors in files.shards.values() for name, one in tensors.items()}
    groups = [group for group in own_tensors(model, held) if not set(group.sources) & set(found)]
    if set(found) <= set(held) and all(group.plain for group in groups):
        return files
    made = {name: group for group in groups for name in group.sources}
    shards: dict[str, dict[str, Stored | OwnTensors]] = {}
    for file, tensors in files.shards.items():
        own = shards.setdefault(file, {})
        for name, one in tensors.items():
            if name not in made:
                own[name] = one
            elif made[name].plain:
                own |= dict.fromkeys(made[name].described, one)
            elif made[name].sources[0] == name:
                own |= dict.fromkeys(made[name].described, made[name])
    return Files(files.folder, {file: own for file, own in shards.items() if own}, source=files)


def stored_files(folder: Path) -> Files:
    """What the files of a checkpoint folder hold.

    Raises:
        StudfinderError: as `weights_of` and `read_header`; a file is a pickle, or of a dtype that torch lacks.
    """
    weights = weights_of(folder)
    if weights.pickles:
        raise StudfinderError(f"{folder / weights.pickles[0]} is a pickle", expected="safetensors", do="Convert it")
    shards = {name: read_header(folder / name) for name in weights.files}
    for file, tensors in shards.items():
        for name, one in tensors.items():
            if one.dtype not in DTYPES:
                raise StudfinderError(f"{name} in {folder / file} is stored as {one.dtype}, which torch lacks")
    return Files(folder, shards)

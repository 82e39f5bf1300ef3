"""A checkpoint on disk as it is quantised without building the model: where its tensors are and which are targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from studfinder.errors import StudfinderError, in_a_line, known
from studfinder.models import LM, Source, anatomy_of, check_checkpoint
from studfinder.models.classes import auto_class_of
from studfinder.models.files import check_folder, weights_of
from studfinder.models.fingerprint import marks
from studfinder.models.headers import DTYPES, Stored, read_header
from studfinder.models.sizes import check_sizes
from studfinder.quantizers.targets import Target, targets
from studfinder.records.outside import read_json


@dataclass(frozen=True)
class Files:
    """A folder of safetensors.

    Attributes:
        folder: the checkpoint.
        shards: file names, each with its tensors in the order they are stored.
        targets: the matrices to quantise, by parameter name.
    """

    folder: Path
    shards: Mapping[str, Mapping[str, Stored]]
    targets: Mapping[str, Target] = field(default_factory=dict)

    @cached_property
    def stored(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Dtype and shape of every tensor."""
        held = {name: one for tensors in self.shards.values() for name, one in tensors.items()}
        return {name: (DTYPES[one.dtype], one.shape) for name, one in held.items()}

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
        path = self.folder / shard
        held = torch.empty(torch.Size(shape).numel(), dtype=dtype)
        with path.open("rb", buffering=0) as file:
            file.seek(self.shards[shard][name].begin)
            found = file.readinto(held.view(torch.uint8).numpy().data) if held.numel() else 0
        if found != held.numel() * dtype.itemsize:
            raise StudfinderError(f"{path} ends within {name}", expected="a whole file", do="Copy it again")
        return held.view(shape)

    def signature(self) -> dict[str, Any]:
        """What stands for the content of the files; see `models.fingerprint.marks`."""
        return {name: marks(self.folder / name) for name in self.shards}


def open_files(folder: Path, *, trust_remote_code: bool = False) -> Files | None:
    """The files of a checkpoint folder, or None where a matrix is stored otherwise than it is
    loaded: under another name than its parameter's, transposed, or in another dtype.

    The model is built without memory (on the meta device), only to know its matrices.

    Raises:
        StudfinderError: as `targets`.
    """
    held = check_folder(folder, allow_pickle=False)
    check_sizes(str(folder), read_json(folder / "config.json"), {name: one.shape for name, one in held.items()})
    lm = skeleton(folder, trust_remote_code=trust_remote_code)
    found = {target.name: target for target in targets(lm, offloaded=True)}
    files = replace(stored_files(folder), targets=found)
    check_checkpoint(folder, trust_remote_code=trust_remote_code)  # what `load` would refuse
    stored, loaded = files.stored, getattr(lm.model.config, "dtype", None)
    if not set(found) <= set(stored) or any(target.ref.transposed for target in found.values()):
        return None
    # What is cast as it is loaded is rounded as it is cast.
    cast = loaded is not None and any(stored[name][0] is not loaded for name in found)
    return None if cast else files


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


def skeleton(folder: Path, *, trust_remote_code: bool = False) -> LM:
    """The model of a checkpoint without its numbers. Raises StudfinderError for an unknown architecture."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        if getattr(config, "quantization_config", None):
            raise StudfinderError(f"{folder} is quantised already", do="Start from the full model")
        auto, config = auto_class_of(str(folder), config, trust_remote_code)
        with torch.device("meta"):
            model = auto.from_config(config, trust_remote_code=trust_remote_code)
    except StudfinderError:
        raise
    except Exception as error:  # transformers raises many kinds; the user needs one line
        said = in_a_line(error)
        raise known(error) or StudfinderError(f"{folder} has a config.json that cannot be read ({said})") from error
    return LM(model.eval(), None, anatomy_of(model), Source(str(folder), "a local folder", folder))

"""A quantised checkpoint written once as the plain one that it stands for, so that it is mapped from its files instead
of being unpacked into memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from studfinder.models.converted import index_shards, written_once
from studfinder.models.headers import DTYPES
from studfinder.models.packed import PlainView

_SHARD = 1 << 30
"""Bytes of a file, all of which is in memory while it is written."""


def unpacked_folder(folder: Path, view: PlainView, dtype: torch.dtype) -> Path:
    """A folder with a checkpoint as its plain view has it: in the cache, written if it is not there.

    Args:
        folder: the checkpoint.
        dtype: what the view unpacks to.

    Raises:
        StudfinderError: a tensor cannot be unpacked; others can write to the cache.
        WriteFailed: the disk has too little room.
    """
    sizes = {name: math.prod(one.shape) * DTYPES[one.dtype].itemsize for name, one in view.held.items()}
    size = sum(sizes.values())
    what = f"{folder}, dequantised to {str(dtype).removeprefix('torch.')}, {size / 1e9:,.2f} GB"
    return written_once("unpacked", folder, str(dtype), size, what, lambda stage: _write(view, sizes, stage))


def _write(view: PlainView, sizes: dict[str, int], stage: Path) -> None:
    from safetensors.torch import save_file
    from transformers.utils.logging import tqdm

    shards: list[list[str]] = [[]]
    taken = 0
    for name, size in sizes.items():
        if shards[-1] and taken + size > _SHARD:
            shards.append([])
            taken = 0
        shards[-1].append(name)
        taken += size
    where: dict[str, str] = {}
    for number, names in enumerate(tqdm(shards, desc="Writing dequantised weights")):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        try:
            tensors: dict[str, Any] = {name: view.state[name][...].contiguous() for name in names}
        finally:
            for failure in view.failed:
                raise failure
        save_file(tensors, stage / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
        del tensors
    index_shards(stage, where, sum(sizes.values()))

"""The tensors of a written checkpoint, one after the other, decompressed by compressed-tensors itself."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from torch import nn

from studfinder.errors import StudfinderError
from studfinder.quantizers.export import meant_module
from studfinder.quantizers.source import stored_files
from studfinder.quantizers.targets import other_matrices
from studfinder.records.outside import read_json

_PARTS = ("", "_packed", "_shape", "_scale", "_zero_point", "_global_scale")
"""What may follow "weight" in the names of a compressed module's tensors."""


def decoded(folder: Path, quantised: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor by the name of its parameter; of quantised modules the dense weight.

    Raises:
        StudfinderError: a file is damaged, or a quantised module cannot be decompressed.
    """
    files = stored_files(folder)
    by_module: dict[str, dict[str, torch.Tensor]] = {}
    parts = set(quantised)
    for name in files.stored:
        module, _, leaf = name.rpartition(".")
        if module not in parts or not (leaf == "weight" or leaf.startswith("weight_")):
            yield name, files.read(name)
            continue
        held = by_module.setdefault(module, {})
        held[leaf] = files.read(name)
        if len(held) == sum(f"{module}.weight{part}" in files.places for part in _PARTS):
            yield f"{module}.weight", _decompressed(folder, module, by_module.pop(module))


def uncovered(folder: Path, model: nn.Module, quantised: Collection[str]) -> str | None:
    """What the checkpoint's config says wrongly of the model's modules, if anything."""
    settings = read_json(folder / "config.json").get("quantization_config")
    if settings is None:
        return None if not quantised else "its config.json says nothing of compressed tensors"
    targets = {meant_module(name) for group in settings["config_groups"].values() for name in group["targets"]}
    ignore = set(settings["ignore"])
    if wrong := sorted(targets ^ set(quantised)):
        return f"{wrong[0]} is {'announced as' if wrong[0] in targets else 'not announced as'} quantised"
    if wrong := sorted((targets & ignore) | (set(other_matrices([model], quantised)) - ignore)):
        return (
            f"{wrong[0]} is {'both announced and ignored' if wrong[0] in targets else 'neither announced nor ignored'}"
        )
    return None


def _decompressed(folder: Path, module: str, held: dict[str, torch.Tensor]) -> torch.Tensor:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    if set(held) == {"weight"}:  # a dense checkpoint
        return held["weight"]
    config = QuantizationConfig.model_validate(read_json(folder / "config.json").get("quantization_config"))
    schemes = ((group, {meant_module(name) for name in group.targets}) for group in config.config_groups.values())
    scheme = next((group for group, names in schemes if module in names), None)
    if scheme is None:
        raise StudfinderError(f"{module} is compressed in {folder}, and its config.json does not say how")
    compressor = BaseCompressor.get_value_from_registry(scheme.format or config.format)
    try:
        dense: torch.Tensor = compressor.decompress(held, scheme)["weight"]
    except Exception as error:  # whatever damaged numbers lead to
        raise StudfinderError(f"{module} cannot be decompressed ({type(error).__name__}: {error})") from None
    return dense

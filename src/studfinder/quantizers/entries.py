"""What goes into an exported checkpoint, tensor by tensor: from files, or from a model on the bench."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch

from studfinder.errors import StudfinderError
from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.checkpoint import TensorGroup
from studfinder.quantizers.export import described_tensors, tensors
from studfinder.quantizers.finite import finite
from studfinder.quantizers.grid import Quantized, with_tensor_scale
from studfinder.quantizers.rtn import RTN, round_to_nearest
from studfinder.quantizers.scheme import Scheme
from studfinder.quantizers.source import Files
from studfinder.quantizers.storage import Storage
from studfinder.quantizers.targets import Target
from studfinder.quantizers.verify import Meant


def file_entry(
    files: Files,
    name: str,
    method: RTN | None,
    format: str | None,
    whole: torch.Tensor | None = None,
    meant: Meant | None = None,
    held_RC: torch.Tensor | None = None,
) -> TensorGroup:
    """A tensor of a checkpoint file: rounded to nearest, or copied where `method` is None.

    Made when it is written, and what it stands for is then added to `meant`. `whole` is the tensor scale that it is to
    have (see `fused_scales`); None is its own. `held_RC` is True for entries that keep their value. Raises
    StudfinderError, naming the tensor, for one that is not finite.
    """
    dtype, shape = files.stored[name]

    def told(dense: torch.Tensor) -> torch.Tensor:
        if meant is not None:
            meant.add(name, dense)
        return dense

    if method is None or format is None:
        return TensorGroup({name: (dtype, shape)}, lambda: {name: told(finite(name, files.read(name)))})

    def rounded(chosen: RTN = method) -> Quantized:
        made = rounded_from_file(files, name, chosen, held_RC)
        grid = None if whole is None else with_tensor_scale(made.grid, whole)
        made = made if grid is None else replace(made, grid=grid)
        if meant is not None and format != "dense":
            told(made.dequantized().to(dtype))
        return made

    def dense() -> torch.Tensor:
        made_RC = rounded().dequantized().to(dtype)
        return made_RC.T if files.targets[name].ref.transposed else made_RC

    if format == "dense":
        return TensorGroup({name: (dtype, shape)}, lambda: {name: told(dense())})
    return _quantized_entry(name, shape, method.scheme, format, dtype, rounded)


def rounded_from_file(files: Files, name: str, method: RTN, held_RC: torch.Tensor | None = None) -> Quantized:
    """A matrix of a checkpoint file, rounded to nearest. Raises StudfinderError, naming it, if it is not finite."""
    stored = files.read(name)
    try:
        return round_to_nearest(stored.T if files.targets[name].ref.transposed else stored, method, held_RC)
    except StudfinderError as error:
        raise StudfinderError(f"{name}: {error.what}", expected=error.expected, do=error.do) from None


def bench_entries(bench: Workbench, layout: Mapping[str, Storage]) -> list[TensorGroup]:
    """Every tensor of a model as it stands on the bench; plain tied ones once, under their first name.

    Args:
        layout: how each quantised matrix is stored, by parameter name.
    """
    entries, seen = [], set()
    state = bench.lm.model.state_dict()
    by_name: dict[str, Quantized] = {}
    formats: dict[str, str] = {}
    parts: dict[str, list[Target]] = {}
    for target in bench.targets:
        if target.name in bench.done and layout[target.name].format != "dense":
            # Modules that share a matrix are decompressed each by itself, so that every one needs it.
            by_name |= dict.fromkeys((target.name, *target.also), bench.done[target.name])
            formats |= dict.fromkeys((target.name, *target.also), layout[target.name].format)
            if target.part is not None:
                parts.setdefault(target.ref.parameter, []).append(target)
    for name, tensor in state.items():
        made = parts.get(name, [])
        for one in made or ([name] if name in by_name else []):
            written = one if isinstance(one, str) else one.name
            quantized = by_name[written]
            make = partial(replace, quantized)  # as it is
            shape = tuple(quantized.codes_RC.shape)
            entries.append(_quantized_entry(written, shape, quantized.scheme, formats[written], tensor.dtype, make))
        if made or name in by_name or (_place(tensor) in seen and tensor.numel()):
            continue
        seen.add(_place(tensor))
        entries.append(TensorGroup({name: (tensor.dtype, tuple(tensor.shape))}, partial(dict, {name: tensor})))
    return entries


def _place(tensor: torch.Tensor) -> tuple:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _quantized_entry(
    name: str, shape: tuple[int, ...], scheme: Scheme, format: str, dtype: torch.dtype, make: Callable[[], Quantized]
) -> TensorGroup:
    module = name.rpartition(".")[0]
    what = {f"{module}.{suffix}": value for suffix, value in described_tensors(shape, scheme, format, dtype).items()}
    return TensorGroup(what, lambda: {f"{module}.{s}": t for s, t in tensors(make(), format, dtype).items()})

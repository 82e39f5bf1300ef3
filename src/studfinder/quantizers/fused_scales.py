"""One scale of the tensor for the matrices that an engine fuses: NVFP4's second level.

A checkpoint has one such number a matrix. vLLM runs q, k and v as one matrix, and gate and up as one, with the largest
of their numbers for all (`compressed_tensors_w4a16_nvfp4.py`), so matrices whose numbers differ would be read wrongly
there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.entries import rounded_from_file
from studfinder.quantizers.grid import RoundingGrid, with_tensor_scale
from studfinder.quantizers.rtn import RTN
from studfinder.quantizers.source import Files
from studfinder.quantizers.targets import by_fused


def share(bench: Workbench) -> None:
    """Give what is fused one tensor scale, after a method has run. No value changes by it."""
    for fused, group in by_fused(bench.targets).items():
        made = [bench.done[target.name] for target in group if target.name in bench.done]
        if len(group) == 1 or len(made) < len(group) or any(one.grid.tensor_scale is None for one in made):
            continue
        whole = _common([one.grid for one in made])
        if whole is None:
            bench.notes.append(note(fused))
            continue
        for target, one in zip(group, made, strict=True):
            grid = with_tensor_scale(one.grid, whole)
            assert grid is not None
            bench.done[target.name] = replace(one, grid=grid)


def shared_of_files(
    files: Files, methods: Mapping[str, RTN], held: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensor scale that each fused matrix is to have, by name, and notes of those that cannot share one.

    Every one of them is rounded for it, a group at a time, and once more when it is written; `methods` says with what
    each is rounded, `held` is as of `resolve`.
    """
    wholes: dict[str, torch.Tensor] = {}
    notes = []
    for fused, group in by_fused(files.targets[name] for name in methods).items():
        if len(group) == 1 or any(methods[target.name].scheme.scale != "e4m3" for target in group):
            continue
        whole = _common([rounded_from_file(files, t.name, methods[t.name], held.get(t.name)).grid for t in group])
        if whole is None:
            notes.append(note(fused))
        else:
            wholes |= {target.name: whole for target in group}
    return wholes, notes


def note(fused: str) -> str:
    """What the card says of matrices that cannot share a scale."""
    return f"{fused}: tensor scales differ, which vLLM cannot serve (it takes the largest for all); transformers can"


def _common(grids: Sequence[RoundingGrid]) -> torch.Tensor | None:
    """The smallest of their tensor scales, at which no scale overflows; None where one would be rounded anew."""
    whole = torch.stack([grid.tensor_scale for grid in grids if grid.tensor_scale is not None]).min()
    return None if any(with_tensor_scale(grid, whole) is None for grid in grids) else whole

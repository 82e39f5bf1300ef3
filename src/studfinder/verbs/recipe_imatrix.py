"""recipe imatrix: how large each input of each matrix is, as an importance file for llama-quantize."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.quantizers import RTN, Scheme, calibration_windows
from studfinder.quantizers.apply import bench_for
from studfinder.quantizers.targets import Target, targets
from studfinder.quantizers.walk import gathered, walk
from studfinder.recipes import ImportanceSums, gguf_names, write_importance
from studfinder.runs import check_place, write_bytes
from studfinder.verbs.configs import ImatrixConfig
from studfinder.verbs.load import load_as

Sums = tuple[torch.Tensor, int]
"""Squared inputs summed over tokens, (in,) fp64; and how many."""


def write_imatrix(model: Any, config: ImatrixConfig) -> dict[str, ImportanceSums]:
    """Read calibration text and write the sums of squared inputs of each matrix in the blocks; they are returned.

    Args:
        model: from `sf.load`, or what it takes.
        config: which text, and whether first tokens are kept apart.

    Raises:
        StudfinderError: GGUF has no names for the architecture, `out` is taken, calibration text too short.
    """
    out = Path(config.out)
    check_place(out, config.overwrite, [])
    lm = load_as(model, config)
    found = targets(lm)
    origin, windows = calibration_windows(lm, config.calibration, count=config.samples, length=config.length)
    names = _names(lm, found)
    sums = importance_sums(lm, found, windows, apart=config.first_token_apart, progress=config.progress)
    tensors = joined(found, names, sums)
    said = f"{origin}, {len(windows)} windows of {config.length} tokens, by studfinder"
    datasets = [said + ", first tokens left out" * config.first_token_apart]
    write = partial(write_importance, tensors=tensors, datasets=datasets, chunks=len(windows), length=config.length)
    write_bytes(out, write)
    return tensors


def importance_sums(
    lm: LM, found: tuple[Target, ...], windows: list[list[int]], *, apart: bool, progress: Any = None
) -> dict[str, Sums]:
    """The sums of each matrix that a token entered, by its name.

    Args:
        apart: leave each window's first token out. Most models make an enormous spike of it, which is then nearly all
            of its channel's sum and of no other token. Where experts are sent only some of a window's tokens, which of
            them is the first is not known, and it counts.
    """
    length = len(windows[0])

    def statistic(_: str, x_NC: torch.Tensor) -> Sums:
        whole = apart and len(x_NC) == length
        x_NC = (x_NC[1:] if whole else x_NC).double()
        return x_NC.square().sum(dim=0).cpu(), len(x_NC)

    bench = bench_for(lm, RTN(scheme=Scheme(block="tensor")), found, windows=windows)  # nothing is rounded
    sums: dict[str, Sums] = {}
    for number, block in enumerate(walk(bench)):
        first = {target.reads: target.name for target in reversed(block.targets)}  # what is given the same is read once
        own = gathered(block, first.values(), statistic, lambda one, other: (one[0] + other[0], one[1] + other[1]))
        sums |= {t.name: own[first[t.reads]] for t in block.targets if first[t.reads] in own}
        if progress is not None:
            progress("reading", number + 1, len(lm.anatomy.layers))
    return sums


def joined(found: tuple[Target, ...], names: dict[str, str], sums: dict[str, Sums]) -> dict[str, ImportanceSums]:
    """By tensor of GGUF, where experts of a layer are matrices of one; an expert that no token reached has a count
    of 0."""
    tensors: dict[str, ImportanceSums] = {}
    for target in found:
        name, part = names[target.name], target.part
        known = sums.get(target.name)
        if not name or (known is None and part is None):
            continue
        width = _width(found, sums, target, names)
        experts = 1 if part is None else 1 + max(t.part.expert for t in found if t.part and names[t.name] == name)
        one = tensors.setdefault(name, ImportanceSums(np.zeros((experts, width)), np.zeros(experts)))
        if known is not None:
            at = 0 if part is None else part.expert
            one.sums[at], one.counts[at] = known[0].numpy(), known[1]
    return tensors


def _width(found: tuple[Target, ...], sums: dict[str, Sums], target: Target, names: dict[str, str]) -> int:
    own = (sums[one.name] for one in found if names[one.name] == names[target.name] and one.name in sums)
    return len(next(own)[0])


def _names(lm: LM, found: tuple[Target, ...]) -> dict[str, str]:
    modules = {target.name: target.modules[0] for target in found}
    ggufs = gguf_names(lm.anatomy.architecture, len(lm.anatomy.layers), list(modules.values()))
    if not any(ggufs.values()):
        raise StudfinderError(f"GGUF has no names for {lm.anatomy.architecture}", expected="a type that llama.cpp has")
    return {name: ggufs[module] for name, module in modules.items()}

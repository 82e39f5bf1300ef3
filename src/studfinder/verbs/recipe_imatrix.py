"""recipe imatrix: how large each input of each matrix is, as an importance file for llama-quantize."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.quantizers import calibration_windows
from studfinder.quantizers.importance import Sums, importance_sums
from studfinder.quantizers.targets import Target, targets
from studfinder.recipes import ImportanceSums, gguf_names, write_importance
from studfinder.runs import check_place, write_bytes
from studfinder.verbs.configs import ImatrixConfig
from studfinder.verbs.load import load_as


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

"""Outputs of norms, attention modules and FFN writers, in the shape the model gives them: what outliers are counted in.

Quantizable Transformers (arXiv 2306.12929) takes its statistics over these tensors. They can be read, not replaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from studfinder.models import LM
from studfinder.patches import Journal
from studfinder.sites.active import Active


@dataclass(frozen=True)
class PartOutput:
    """What one part of the model gave.

    Attributes:
        name: the module's name.
        output: (B,T,C), or (B*T,C) where the model works on flat tokens, as OPT's feed-forward half does.
    """

    name: str
    output: torch.Tensor


def part_hooks(lm: LM, active: Active, journal: Journal) -> None:
    """Install hooks on the parts."""
    if active.wants(PartOutput):
        for name in part_names(lm):
            journal.hook(lm.model.get_submodule(name), _shown(name, active))


def part_names(lm: LM) -> list[str]:
    """Attention modules (whose output is W_o's), FFN writers, norms of blocks, and the final norm."""
    names = []
    for layer in lm.anatomy.layers:
        names += _norms(lm, layer.block)
        names += [layer.attention] if layer.attention is not None else []
        names += list(dict.fromkeys(writer.module for writer in layer.writers))
    return names + _norms(lm, lm.anatomy.decoder)


def _norms(lm: LM, parent: str) -> list[str]:
    children = lm.model.get_submodule(parent).named_children()
    return [f"{parent}.{name}" for name, child in children if "norm" in type(child).__name__.lower()]


def _shown(name: str, active: Active) -> Any:
    def after(_module: nn.Module, _args: tuple, output: Any) -> None:
        active.show(PartOutput(name, output if isinstance(output, torch.Tensor) else output[0]))

    return after

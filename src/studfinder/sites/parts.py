"""Outputs of norms, attention modules and FFN writers, in the shape the model gives them: what outliers are counted in.

Quantizable Transformers (arXiv 2306.12929) takes its statistics over these tensors. They can be read, not replaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from studfinder.models import LM
from studfinder.models.roles import norm_offset
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
        names += [norm.module for norm in layer.norms if norm.module.rpartition(".")[0] == layer.block]
        names += [layer.attention] if layer.attention is not None else []
        names += list(dict.fromkeys(writer.module for writer in layer.writers))
    return names + _final_norm(lm)


def _final_norm(lm: LM) -> list[str]:
    """Norms beside the blocks."""
    drawn_BTC = torch.zeros(1, 2, lm.anatomy.hidden, dtype=lm.dtype, device=lm.device)
    beside = lm.model.get_submodule(lm.anatomy.decoder).named_children()
    return [
        f"{lm.anatomy.decoder}.{name}"
        for name, module in beside
        if not list(module.children()) and norm_offset(module, drawn_BTC) is not None
    ]


def _shown(name: str, active: Active) -> Any:
    def after(_module: nn.Module, _args: tuple, output: Any) -> None:
        active.show(PartOutput(name, output if isinstance(output, torch.Tensor) else output[0]))

    return after

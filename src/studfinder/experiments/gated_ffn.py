"""The gate and the up projection beside a down projection."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from studfinder.models import LM


@dataclass(frozen=True)
class GatedFFN:
    """The parts of a gated FFN: W_gate and W_up (F,C), the activation, and the FFN module."""

    gate_FC: torch.Tensor
    up_FC: torch.Tensor
    act: nn.Module
    module: str


def gated_ffn(lm: LM, layer: int, writer: int) -> GatedFFN | None:
    """The FFN around a down projection; None if it has no gate that we know of."""
    path = lm.anatomy.layers[layer].writers[writer].module.rpartition(".")[0]
    module = lm.model.get_submodule(path)
    act = getattr(module, "act_fn", None) or getattr(module, "activation_fn", None)
    if isinstance(getattr(module, "gate_up_proj", None), nn.Linear):
        gate, up = module.gate_up_proj.weight.detach().float().chunk(2)
    elif isinstance(getattr(module, "gate_proj", None), nn.Linear):
        gate, up = (getattr(module, name).weight.detach().float() for name in ("gate_proj", "up_proj"))
    else:
        return None
    return GatedFFN(gate, up, act, path) if act is not None else None

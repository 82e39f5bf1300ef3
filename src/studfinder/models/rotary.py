"""Rotary facts from the model's own inverse frequencies, per layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from studfinder.models.lm import LM


@dataclass(frozen=True)
class Rotary:
    """How one layer rotates Q and K.

    Attributes:
        inv_freq: radians per token of each pair, highest first, shape (pairs,).
        interleaved: pair j is dims (2j, 2j+1); otherwise (j, j + pairs), the rotate-half layout.
        head_dim: dims of a head; those beyond 2 * pairs are not rotated.
    """

    inv_freq: tuple[float, ...]
    interleaved: bool
    head_dim: int

    def pair_of(self, dim: int) -> int | None:
        """Which pair a dim belongs to; None if it is not rotated."""
        pairs = len(self.inv_freq)
        if dim >= 2 * pairs:
            return None
        return dim // 2 if self.interleaved else dim % pairs

    def never_turns(self, train_length: int) -> tuple[bool, ...]:
        """Per dim: whether its pair never completes a turn within `train_length` tokens (the partial cycle of
        Jonasson 2025, arXiv 2503.01832). Dims that are not rotated count as never turning."""
        slow = [freq * train_length < 2 * math.pi for freq in self.inv_freq]
        pairs = [self.pair_of(dim) for dim in range(self.head_dim)]
        return tuple(True if pair is None else slow[pair] for pair in pairs)


def rotary_of(lm: LM, layer: int) -> Rotary | None:
    """The rotary facts of one layer, or None if the model (or this layer) has none.

    Read from the live module that makes the model's cosines, so that scaling rules (YaRN, Llama 3, local and
    global frequencies) are the model's own. With dynamic scaling these are the values at load.
    """
    if lm.anatomy.stage == "no RoPE" or lm.anatomy.layers[layer].attention is None:
        return None
    config = lm.model.config.get_text_config(decoder=True)
    decoder = lm.model.get_submodule(lm.anatomy.decoder)
    inv_freq = _inverse_frequencies(decoder, config, layer)
    if inv_freq is None:  # older model code keeps a rotary module in each attention
        name = lm.anatomy.layers[layer].attention
        assert name is not None
        inv_freq = _inverse_frequencies(lm.model.get_submodule(name), config, layer)
    if inv_freq is None:
        return None
    interleaved = bool(getattr(config, "rope_interleave", False) or getattr(config, "rope_interleaved", False))
    return Rotary(tuple(inv_freq.float().tolist()), interleaved, lm.anatomy.head_dim)


def _inverse_frequencies(module: nn.Module, config: object, layer: int) -> torch.Tensor | None:
    types = getattr(config, "layer_types", None)
    wanted = [f"{types[layer]}_inv_freq"] if types else []
    for child in module.children():
        for name in [*wanted, "inv_freq"]:
            found = getattr(child, name, None)
            if isinstance(found, torch.Tensor):
                return found
    return None


def train_length(lm: LM, given: int | None = None) -> tuple[int, str]:
    """The training context used for rotary facts, and where the number came from."""
    if given is not None:
        return given, "given"
    if lm.anatomy.max_positions:
        return int(lm.anatomy.max_positions), "max_position_embeddings"
    return 2048, "assumed: the config names no length"

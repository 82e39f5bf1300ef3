"""Rotary facts from the model's own inverse frequencies, per layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

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
        first: the first dim that is rotated: MLA keeps those behind the others.
        trained_freq: radians per token in training at the original length: without the scaling that came after it.
    """

    inv_freq: tuple[float, ...]
    interleaved: bool
    head_dim: int
    trained_freq: tuple[float, ...]
    first: int = 0

    def pair_of(self, dim: int) -> int | None:
        """Which pair a dim belongs to; None if it is not rotated."""
        pairs = len(self.inv_freq)
        dim -= self.first
        if not 0 <= dim < 2 * pairs:
            return None
        return dim // 2 if self.interleaved else dim % pairs

    def never_turns(self, train_length: int) -> tuple[bool, ...]:
        """Per dim: whether its pair never completes a turn within `train_length` tokens (the partial cycle of
        Jonasson 2025, arXiv 2503.01832). Dims that are not rotated count as never turning."""
        slow = [freq * train_length < 2 * math.pi for freq in self.trained_freq]
        pairs = [self.pair_of(dim) for dim in range(self.head_dim)]
        return tuple(True if pair is None else slow[pair] for pair in pairs)


def rotary_of(lm: LM, layer: int) -> Rotary | None:
    """The rotary facts of one layer, or None if the model (or this layer) has none.

    Read from the live module that makes the model's cosines, so that scaling rules (YaRN, Llama 3, local and
    global frequencies) are the model's own. With dynamic scaling these are the values at load. Where the config names
    the length before scaling, the frequencies before scaling are kept beside them: one belongs to the other.
    """
    mixer = lm.anatomy.layers[layer].mixer
    if mixer is None or mixer.stage == "no RoPE":
        return None
    config = lm.model.config.get_text_config(decoder=True)
    decoder = lm.model.get_submodule(lm.anatomy.decoder)
    inv_freq = _inverse_frequencies(decoder, config, layer)
    if inv_freq is None:  # older model code keeps a rotary module in each attention
        inv_freq = _inverse_frequencies(lm.model.get_submodule(mixer.module), config, layer)
    if inv_freq is None:
        return None
    live = tuple(inv_freq.float().tolist())
    scaling = _scaling(config, layer)
    trained = live
    if scaling is not None and scaling.original is not None and scaling.theta is not None:
        trained = tuple(scaling.theta ** (-pair / len(live)) for pair in range(len(live)))
    return Rotary(live, mixer.interleaved, mixer.head_dim, trained, mixer.turned)


def _inverse_frequencies(module: nn.Module, config: object, layer: int) -> torch.Tensor | None:
    types = getattr(config, "layer_types", None)
    wanted = [f"{types[layer]}_inv_freq"] if types else []
    for child in module.children():
        for name in [*wanted, "inv_freq"]:
            found = getattr(child, name, None)
            if isinstance(found, torch.Tensor):
                return found
    return None


@dataclass(frozen=True)
class _Scaling:
    """What stretches RoPE beyond the length of training: its kind, that length if it is named, and the base."""

    kind: str
    original: int | None
    theta: float | None


def _scaling(config: Any, layer: int | None = None) -> _Scaling | None:
    """The scaling of one layer, or of the first kind of layer that has any; None where there is none."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [params for params in given.values() if isinstance(params, dict)]
    if not kinds:
        kinds = [given]
    elif layer is not None:
        kinds = [given.get(config.layer_types[layer]) or {}]
    for params in kinds:
        kind = params.get("rope_type", params.get("type", "default"))
        if kind in _STRETCHES:
            original = params.get("original_max_position_embeddings")
            original = original or getattr(config, "original_max_position_embeddings", None)
            theta = params.get("rope_theta", getattr(config, "rope_theta", None))
            return _Scaling(kind, None if original is None else int(original), theta)
    return None


_STRETCHES = ("linear", "dynamic", "yarn", "longrope", "llama3", "su")


def train_length(lm: LM, given: int | None = None) -> tuple[int, str]:
    """The training context used for rotary facts, and where the number came from: the length before any scaling of
    RoPE, where the config names it."""
    if given is not None:
        return given, "given"
    scaling = _scaling(lm.model.config.get_text_config(decoder=True))
    if scaling is not None and scaling.original is not None:
        return scaling.original, f"original_max_position_embeddings, before {scaling.kind} scaling"
    if lm.anatomy.max_positions:
        unnamed = f"; the length before {scaling.kind} scaling is not named" if scaling is not None else ""
        return int(lm.anatomy.max_positions), f"max_position_embeddings{unnamed}"
    return 2048, "assumed: the config names no length"

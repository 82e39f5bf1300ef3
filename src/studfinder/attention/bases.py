"""The architectures that convert knows: how each one projects and writes out. A new one is one entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

from studfinder.attention.variant import AttentionShape

_QKV = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _separate(module: Any, hidden_BTC: torch.Tensor) -> _QKV:
    heads = (*hidden_BTC.shape[:-1], -1, module.head_dim)
    return (
        module.q_proj(hidden_BTC).view(heads),
        module.k_proj(hidden_BTC).view(heads),
        module.v_proj(hidden_BTC).view(heads),
    )


def _opt(module: Any, hidden_BTC: torch.Tensor) -> _QKV:
    query, key, value = _separate(module, hidden_BTC)
    # OPT scales the query rather than the scores; kept, since rounding depends on it.
    return query * module.scaling, key, value


def _gpt2(module: Any, hidden_BTC: torch.Tensor) -> _QKV:
    heads = (*hidden_BTC.shape[:-1], -1, module.head_dim)
    query, key, value = module.c_attn(hidden_BTC).split(module.split_size, dim=2)
    return query.view(heads), key.view(heads), value.view(heads)


def _window(module: Any) -> dict[str, Any]:
    return {"sliding_window": module.sliding_window}


def _capped(module: Any) -> dict[str, Any]:
    return {"sliding_window": module.sliding_window, "softcap": module.attn_logit_softcapping}


@dataclass(frozen=True, kw_only=True)
class Base:
    """One architecture.

    Attributes:
        kind: transformers' model_type; its own tables name the classes.
        output: the name of W_o in the attention module.
        rotary: whether positions are rotary (and so can be changed inside attention).
        project: (module, hidden (B, T, C)) -> query (B, T, H, D), key and value (B, T, G, D), before any
            norm.
        dropout: (module) -> its attention dropout.
        scaling: (module) -> what the attention function multiplies scores with.
        extras: further keywords the base hands to its attention function.
    """

    kind: str
    output: str = "o_proj"
    rotary: bool = True
    project: Callable[[Any, torch.Tensor], _QKV] = _separate
    dropout: Callable[[Any], float] = lambda module: module.attention_dropout
    scaling: Callable[[Any], float] = lambda module: module.scaling
    extras: Callable[[Any], dict[str, Any]] = lambda module: {}

    @property
    def config_class(self) -> type[Any]:
        return CONFIG_MAPPING[self.kind]

    @property
    def model_class(self) -> type[Any]:
        return MODEL_FOR_CAUSAL_LM_MAPPING[self.config_class]

    @cached_property
    def modeling(self) -> Any:
        """transformers' own module for this architecture."""
        return import_module(self.model_class.__module__)

    @property
    def attention_class(self) -> type[nn.Module]:
        prefix = self.model_class.__name__.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
        return getattr(self.modeling, f"{prefix}Attention")


BASES = {
    base.kind: base
    for base in (
        Base(kind="llama"),
        Base(
            kind="mistral",
            extras=lambda module: {"sliding_window": getattr(module.config, "sliding_window", None)},
        ),
        Base(kind="qwen2", extras=_window),
        Base(kind="qwen3", extras=_window),
        Base(kind="gemma"),
        Base(kind="gemma2", extras=_capped),
        Base(kind="gemma3_text", extras=_window),
        Base(
            kind="gpt2",
            output="c_proj",
            rotary=False,
            project=_gpt2,
            dropout=lambda module: module.attn_dropout.p,
        ),
        Base(
            kind="opt",
            output="out_proj",
            rotary=False,
            project=_opt,
            dropout=lambda module: module.dropout,
            scaling=lambda module: 1.0,
        ),
    )
}


def attention_shape(module: Any) -> AttentionShape:
    """The sizes of an attention module."""
    config = module.config
    heads = int(config.num_attention_heads)
    return AttentionShape(
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(module.head_dim),
        hidden=int(config.hidden_size),
    )

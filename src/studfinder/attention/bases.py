"""The architectures that convert knows: how each one projects and writes out. A new one is one entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

import torch
from torch import nn

from studfinder.attention.variant import Shape

QKV = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Base:
    """One architecture.

    Attributes:
        kind: transformers' model_type.
        package: the folder in transformers.models.
        prefix: of its class names.
        config: the configuration's class name.
        output: the name of W_o in the attention module.
        rotary: whether positions are rotary (and so can be changed inside attention).
        project: (module, hidden (B, T, C)) -> query (B, T, H, D), key and value (B, T, G, D), before any
            norm.
        dropout: (module) -> its attention dropout.
        scaling: (module) -> what the attention function multiplies scores with.
        extras: further keywords the base hands to its attention function.
    """

    kind: str
    package: str
    prefix: str
    config: str
    output: str = "o_proj"
    rotary: bool = True
    project: Callable[[Any, torch.Tensor], QKV]
    dropout: Callable[[Any], float] = lambda module: module.attention_dropout
    scaling: Callable[[Any], float] = lambda module: module.scaling
    extras: Callable[[Any], dict[str, Any]] = lambda module: {}

    @cached_property
    def modeling(self) -> Any:
        """transformers' own module for this architecture."""
        return import_module(f"transformers.models.{self.package}.modeling_{self.package}")

    @property
    def attention_class(self) -> type[nn.Module]:
        return getattr(self.modeling, f"{self.prefix}Attention")

    @property
    def model_class(self) -> type[Any]:
        suffix = "LMHeadModel" if self.kind == "gpt2" else "ForCausalLM"
        return getattr(self.modeling, f"{self.prefix}{suffix}")

    @property
    def config_class(self) -> type[Any]:
        return getattr(import_module(f"transformers.models.{self.package}"), self.config)


def _separate(module: Any, hidden_BTC: torch.Tensor) -> QKV:
    heads = (*hidden_BTC.shape[:-1], -1, module.head_dim)
    return (
        module.q_proj(hidden_BTC).view(heads),
        module.k_proj(hidden_BTC).view(heads),
        module.v_proj(hidden_BTC).view(heads),
    )


def _opt(module: Any, hidden_BTC: torch.Tensor) -> QKV:
    heads = (*hidden_BTC.shape[:-1], module.num_heads, module.head_dim)
    # OPT scales the query rather than the scores; kept, since rounding depends on it.
    query = module.q_proj(hidden_BTC) * module.scaling
    return query.view(heads), module.k_proj(hidden_BTC).view(heads), module.v_proj(hidden_BTC).view(heads)


def _gpt2(module: Any, hidden_BTC: torch.Tensor) -> QKV:
    heads = (*hidden_BTC.shape[:-1], -1, module.head_dim)
    query, key, value = module.c_attn(hidden_BTC).split(module.split_size, dim=2)
    return query.view(heads), key.view(heads), value.view(heads)


def _window(module: Any) -> dict[str, Any]:
    return {"sliding_window": module.sliding_window}


def _capped(module: Any) -> dict[str, Any]:
    return {"sliding_window": module.sliding_window, "softcap": module.attn_logit_softcapping}


BASES = {
    base.kind: base
    for base in (
        Base(kind="llama", package="llama", prefix="Llama", config="LlamaConfig", project=_separate),
        Base(
            kind="mistral",
            package="mistral",
            prefix="Mistral",
            config="MistralConfig",
            project=_separate,
            extras=lambda module: {"sliding_window": getattr(module.config, "sliding_window", None)},
        ),
        Base(
            kind="qwen2",
            package="qwen2",
            prefix="Qwen2",
            config="Qwen2Config",
            project=_separate,
            extras=_window,
        ),
        Base(
            kind="qwen3",
            package="qwen3",
            prefix="Qwen3",
            config="Qwen3Config",
            project=_separate,
            extras=_window,
        ),
        Base(kind="gemma", package="gemma", prefix="Gemma", config="GemmaConfig", project=_separate),
        Base(
            kind="gemma2",
            package="gemma2",
            prefix="Gemma2",
            config="Gemma2Config",
            project=_separate,
            extras=_capped,
        ),
        Base(
            kind="gemma3_text",
            package="gemma3",
            prefix="Gemma3",
            config="Gemma3TextConfig",
            project=_separate,
            extras=_window,
        ),
        Base(
            kind="gpt2",
            package="gpt2",
            prefix="GPT2",
            config="GPT2Config",
            output="c_proj",
            rotary=False,
            project=_gpt2,
            dropout=lambda module: module.attn_dropout.p,
        ),
        Base(
            kind="opt",
            package="opt",
            prefix="OPT",
            config="OPTConfig",
            output="out_proj",
            rotary=False,
            project=_opt,
            dropout=lambda module: module.dropout,
            scaling=lambda module: 1.0,
        ),
    )
}


def shape_of(module: Any) -> Shape:
    """The sizes of an attention module."""
    config = module.config
    heads = int(config.num_attention_heads)
    return Shape(
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(module.head_dim),
        hidden=int(config.hidden_size),
    )

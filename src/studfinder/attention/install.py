"""Put the parts of a list of variants into a model: the one place where a live model's modules change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from studfinder.attention.bases import Base, attention_shape
from studfinder.attention.interface import NAME
from studfinder.attention.module import VariantAttention, attention_class
from studfinder.attention.variant import Part, Variant

# Roles whose work is done outside the attention function.
_IN_MODULE = {"keys and values", "queries", "positions", "output"}


def attention_modules(model: Any, base: Base) -> Iterator[Any]:
    """The attention modules of a model, in order of layers."""
    return (module for module in model.modules() if isinstance(module, base.attention_class))


def install(model: Any, base: Base, variants: list[Variant]) -> None:
    """Give every attention module the parts of `variants`, and set the attention function they need.

    New parameters take the device and dtype of the module's output projection.
    """
    for layer, module in enumerate(list(attention_modules(model, base))):
        shape = attention_shape(module)
        like = getattr(module, base.output).weight
        if any(variant.role in _IN_MODULE for variant in variants) and not isinstance(module, VariantAttention):
            module.__class__ = attention_class(base)
            module.parts = {}
        for variant in variants:
            part = variant.part(shape, layer).to(device=like.device, dtype=like.dtype)
            part.start_from(module)
            module.add_module(variant.name, part)
            if isinstance(module, VariantAttention):
                module.parts[variant.role] = variant.name
            if variant.own_function:
                module.weights_part = variant.name
            if variant.role == "queries" and hasattr(module, "num_key_value_groups"):
                module.num_key_value_groups *= 2
    if any(variant.own_function for variant in variants):
        model.config._attn_implementation = NAME


@torch.no_grad()
def start_missing(model: Any, base: Base) -> None:
    """Start the parts' parameters that no checkpoint gave (transformers flags the others), and leave the
    rest.

    transformers hands initialisation to the innermost model, which does not know our parts, and the memory of
    a missing parameter holds anything.
    """
    for module in attention_modules(model, base):
        for part in (child for child in module.children() if isinstance(child, Part)):
            given = [p for p in part.parameters() if getattr(p, "_is_hf_initialized", False)]
            kept = [p.clone() for p in given]
            part.reset()
            part.start_from(module)
            for parameter, value in zip(given, kept, strict=True):
                parameter.copy_(value)

"""Put the parts of a list of variants into a model: the one place where a live model's modules change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from studfinder.attention.interface import NAME
from studfinder.attention.places import GROUPS, AttentionPlace
from studfinder.attention.variant import Part, Variant
from studfinder.attention.wiring import Wiring

# Roles whose work is done outside the attention function.
_IN_MODULE = {"keys and values", "queries", "positions", "output"}


def install(model: Any, places: Mapping[str, AttentionPlace], variants: Iterable[Variant]) -> None:
    """Give every attention module the parts of `variants`, and set the attention function they need.

    New parameters take the device and dtype of the module's largest parameter.
    """
    for layer, (name, place) in enumerate(places.items()):
        module = model.get_submodule(name)
        for variant in variants:
            like = max(module.parameters(), key=torch.Tensor.numel)
            part = variant.part(place.shape, layer).to(device=like.device, dtype=like.dtype)
            if place.query is not None:
                part.start_from(module.get_submodule(place.query.projection))
            module.add_module(variant.name, part)
            if variant.role in _IN_MODULE:
                if not hasattr(module, "wiring"):
                    module.wiring = Wiring(module, place)
                module.wiring.add(variant.role, variant.name)
            if variant.own_function:
                module.weights_part = variant.name
                module.config._attn_implementation = {"": NAME}  # not of the configs within it
            if variant.role == "queries" and hasattr(module, GROUPS):
                module.num_key_value_groups *= 2


@torch.no_grad()
def start_missing(model: Any, places: Mapping[str, AttentionPlace]) -> None:
    """Start the parts' parameters that no checkpoint gave (transformers flags the others), and leave the
    rest.

    transformers hands initialisation to the innermost model, which does not know our parts, and the memory of
    a missing parameter holds anything.
    """
    for name, place in places.items():
        module = model.get_submodule(name)
        for part in (child for child in module.children() if isinstance(child, Part)):
            given = [p for p in part.parameters() if getattr(p, "_is_hf_initialized", False)]
            kept = [p.clone() for p in given]
            part.reset()
            if place.query is not None:
                part.start_from(module.get_submodule(place.query.projection))
            for parameter, value in zip(given, kept, strict=True):
                parameter.copy_(value)

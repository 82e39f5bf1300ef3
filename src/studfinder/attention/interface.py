"""The entry in transformers' attention interface through which other weight functions than softmax run.

The mask function is registered under the same name: without it transformers builds no mask at all, and
padding (for some functions causality too) is silently ignored.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from studfinder.errors import StudfinderError

NAME = "studfinder"


def variant_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: query (B, H, T, D), key and value (B, G, S, D) -> (B, T, H, D),
    None."""
    if not hasattr(module, "weights_part"):  # attention outside the layers, of the same config
        keywords = {"scaling": scaling, "is_causal": is_causal, **kwargs}
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, **keywords)
    if dropout:
        raise StudfinderError(
            f"attention dropout {dropout} is not supported by this variant", expected="attention_dropout=0"
        )
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    causal = causal and attention_mask is None and query.shape[2] > 1
    if causal and key.shape[2] > query.shape[2]:
        # Without a mask this happens only as a static cache is filled: what lies behind is still empty.
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    part = getattr(module, module.weights_part)
    mixed = part.attend(query, key, value, attention_mask, causal, scale)
    return mixed.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, variant_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)

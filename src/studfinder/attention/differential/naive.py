"""Differential attention, version 2, the specification (Ye et al. 2024, arXiv 2410.05258; v2 of January
2026)."""

from __future__ import annotations

import torch

from studfinder.attention import dense


def attend(
    query_BHTD: torch.Tensor,
    second_BHTD: torch.Tensor,
    key_BGSD: torch.Tensor,
    value_BGSD: torch.Tensor,
    mask_BHTS: torch.Tensor | None,
    strength_BHT: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:
    """attend(q) - sigmoid(strength) attend(second q), over the same keys and values."""
    first = dense.softmax_attention(query_BHTD, key_BGSD, value_BGSD, mask_BHTS, scale)
    second = dense.softmax_attention(second_BHTD, key_BGSD, value_BGSD, mask_BHTS, scale)
    return first - torch.sigmoid(strength_BHT)[..., None] * second

"""Explicit attention bias, the specification (Sun et al. 2024, arXiv 2402.17762, section 4.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from studfinder.attention import dense


def attend(
    query_BHTD: torch.Tensor,
    key_BGSD: torch.Tensor,
    value_BGSD: torch.Tensor,
    mask_BHTS: torch.Tensor | None,
    key_bias_GD: torch.Tensor,
    value_bias_GD: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:
    """softmax(Q [k'; K]^T) [v'; V]: one more key and value per key/value head, visible to every query."""
    batch = key_BGSD.shape[0]
    key = torch.cat([key_bias_GD[None, :, None].expand(batch, -1, 1, -1), key_BGSD], dim=2)
    value = torch.cat([value_bias_GD[None, :, None].expand(batch, -1, 1, -1), value_BGSD], dim=2)
    mask = None if mask_BHTS is None else F.pad(mask_BHTS, (1, 0), value=True)
    return dense.softmax_attention(query_BHTD, key, value, mask, scale)

"""Softmax off by one, the specification (Miller 2023, "Attention is off by one")."""

from __future__ import annotations

import torch

from studfinder.attention import dense


def attend(
    query_BHTD: torch.Tensor,
    key_BGSD: torch.Tensor,
    value_BGSD: torch.Tensor,
    mask_BHTS: torch.Tensor | None,
    scale: float | None = None,
) -> torch.Tensor:
    """e^s / (1 + sum e^s) V, both divided by e^max."""
    s_BHTS = dense.scores(query_BHTD, key_BGSD, mask_BHTS, scale)
    top = s_BHTS.detach().amax(dim=-1, keepdim=True).clip(min=0)
    e_BHTS = torch.exp(s_BHTS - top)
    return dense.weigh(e_BHTS / (torch.exp(-top) + e_BHTS.sum(dim=-1, keepdim=True)), value_BGSD)

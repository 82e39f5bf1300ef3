"""Softpick, the specification (Zuhri et al. 2025, arXiv 2504.20966, section 3)."""

from __future__ import annotations

import torch

from studfinder.attention import dense

EPSILON = 1e-6


def attend(
    query_BHTD: torch.Tensor,
    key_BGSD: torch.Tensor,
    value_BGSD: torch.Tensor,
    mask_BHTS: torch.Tensor | None,
    scale: float | None = None,
) -> torch.Tensor:
    """relu(e^s - 1) / (sum |e^s - 1| + epsilon) V, both divided by e^max; masked keys are not in the sum."""
    s_BHTS = dense.scores(query_BHTD, key_BGSD, mask_BHTS, scale)
    top = s_BHTS.detach().amax(dim=-1, keepdim=True).clip(min=0)
    u_BHTS = torch.exp(s_BHTS - top) - torch.exp(-top)
    if mask_BHTS is not None:
        u_BHTS = u_BHTS.masked_fill(~mask_BHTS, 0)
    return dense.weigh(u_BHTS.relu() / (u_BHTS.abs().sum(dim=-1, keepdim=True) + EPSILON), value_BGSD)

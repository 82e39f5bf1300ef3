"""Clipped softmax, the specification (arXiv 2306.12929, section 4.1)."""

from __future__ import annotations

import torch

from studfinder.attention import dense


def attend(
    query_BHTD: torch.Tensor,
    key_BGSD: torch.Tensor,
    value_BGSD: torch.Tensor,
    mask_BHTS: torch.Tensor | None,
    gamma: float | torch.Tensor,
    zeta: float = 1.0,
    scale: float | None = None,
) -> torch.Tensor:
    """clip((zeta - gamma) softmax(scores) + gamma, 0, 1) V; gamma one number or per row (..., T, 1)."""
    p_BHTS = dense.softmax(dense.scores(query_BHTD, key_BGSD, mask_BHTS, scale))
    return dense.weigh(((zeta - gamma) * p_BHTS + gamma).clip(0, 1), value_BGSD)

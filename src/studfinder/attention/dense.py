"""Plain attention, dense: what every variant's naive.py is written against."""

from __future__ import annotations

import torch


def scores(
    query_BHTD: torch.Tensor,
    key_BGSD: torch.Tensor,
    mask_BHTS: torch.Tensor | None,
    scale: float | None = None,
) -> torch.Tensor:
    """Scaled dot products (B, H, T, S), -inf where `mask` is False; a key head serves H / G query heads in a
    row."""
    heads, groups = query_BHTD.shape[1], key_BGSD.shape[1]
    key_BHSD = key_BGSD.repeat_interleave(heads // groups, dim=1)
    scale = query_BHTD.shape[-1] ** -0.5 if scale is None else scale
    scores_BHTS = query_BHTD @ key_BHSD.transpose(-1, -2) * scale
    return scores_BHTS if mask_BHTS is None else scores_BHTS.masked_fill(~mask_BHTS, -torch.inf)


def weigh(weights_BHTS: torch.Tensor, value_BGSD: torch.Tensor) -> torch.Tensor:
    """The weighted sum of the values, (B, H, T, D)."""
    return weights_BHTS @ value_BGSD.repeat_interleave(weights_BHTS.shape[1] // value_BGSD.shape[1], dim=1)


def softmax(scores_BHTS: torch.Tensor) -> torch.Tensor:
    """Softmax over the keys; a row that may look at nothing gives zeros, as SDPA does."""
    return torch.nan_to_num(torch.softmax(scores_BHTS, dim=-1))


def softmax_attention(
    query_BHTD: torch.Tensor,
    key_BGSD: torch.Tensor,
    value_BGSD: torch.Tensor,
    mask_BHTS: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """softmax(Q K^T * scale) V."""
    return weigh(softmax(scores(query_BHTD, key_BGSD, mask_BHTS, scale)), value_BGSD)

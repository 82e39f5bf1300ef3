"""A learned sink logit per head, the specification (the gpt-oss model card; Xiao et al. 2024)."""

from __future__ import annotations

import torch

from studfinder.attention import dense


def attend(
    query_BHTD: torch.Tensor,
    key_BGSD: torch.Tensor,
    value_BGSD: torch.Tensor,
    mask_BHTS: torch.Tensor | None,
    sink_H: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:
    """Softmax over the keys and one logit of the head; the logit's column is dropped."""
    s_BHTS = dense.scores(query_BHTD, key_BGSD, mask_BHTS, scale)
    column = sink_H[None, :, None, None].expand(*s_BHTS.shape[:3], 1)
    return dense.weigh(torch.softmax(torch.cat([s_BHTS, column], dim=-1), dim=-1)[..., :-1], value_BGSD)

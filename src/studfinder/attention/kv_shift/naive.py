"""KV shifting, the specification (arXiv 2411.19574, section 3.1)."""

from __future__ import annotations

import torch


def shift(x_BTGD: torch.Tensor) -> torch.Tensor:
    """Every token gets the previous one's row; the first gets zeros."""
    return torch.cat([torch.zeros_like(x_BTGD[:, :1]), x_BTGD[:, :-1]], dim=1)


def mix(
    x_BTGD: torch.Tensor,
    current_G: torch.Tensor,
    previous_G: torch.Tensor,
    starts_BT: torch.Tensor | None = None,
) -> torch.Tensor:
    """current * x + previous * shift(x), before RoPE; `starts` marks tokens that begin a document."""
    shifted = shift(x_BTGD)
    if starts_BT is not None:
        shifted = shifted * ~starts_BT[:, :, None, None]
    return current_G[:, None] * x_BTGD + previous_G[:, None] * shifted

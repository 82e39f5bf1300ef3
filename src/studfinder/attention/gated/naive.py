"""Gated attention, the specification (Bondarenko et al. 2023, arXiv 2306.12929, section 4.2; Qiu et al. 2025,
arXiv 2505.06708, position G1)."""

from __future__ import annotations

import torch


def per_head(hidden_BTC: torch.Tensor, weight_HS: torch.Tensor, bias_H: torch.Tensor) -> torch.Tensor:
    """Head h's logit from its slice of the layer's input, (B, T, H): "linear"."""
    slices = hidden_BTC.chunk(len(weight_HS), dim=-1)
    return torch.stack([x @ w + b for x, w, b in zip(slices, weight_HS, bias_H, strict=True)], dim=-1)


def mlp(
    hidden_BTC: torch.Tensor,
    weight_in_HNS: torch.Tensor,
    bias_in_HN: torch.Tensor,
    weight_HN: torch.Tensor,
    bias_H: torch.Tensor,
) -> torch.Tensor:
    """The same through a ReLU layer of N units per head: "mlp"."""
    slices = hidden_BTC.chunk(len(weight_HN), dim=-1)
    layers = zip(slices, weight_in_HNS, bias_in_HN, weight_HN, bias_H, strict=True)
    return torch.stack([torch.relu(x @ w1.T + b1) @ w2 + b2 for x, w1, b1, w2, b2 in layers], dim=-1)


def apply(mixed_BTHD: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """sigmoid(logits) * what the head writes; logits (B, T, H) or, element-wise, (B, T, H, D)."""
    return torch.sigmoid(logits if logits.dim() == 4 else logits[..., None]) * mixed_BTHD

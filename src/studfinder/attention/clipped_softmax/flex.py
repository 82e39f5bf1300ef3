"""Clipped softmax through FlexAttention, in two passes.

Pass 1 gives the log-sum-exp of every row. Pass 2 attends with the scores log(max((1 - gamma) p + gamma, 0)),
whose softmax is the clipped weights up to a row's sum; multiplying by that sum (its own log-sum-exp) undoes
the normalisation. A row without any weight left has log-sum-exp -inf and gives zeros.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

from studfinder.errors import StudfinderError


def clipped_flex_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: Any,
    causal: bool,
    scale: float,
    gamma: float,
) -> torch.Tensor:
    """query (B, H, T, D), key and value (B, G, S, D), mask bool (B, 1|H, T, S) or None -> (B, H, T, D)."""
    if query.device.type == "cpu" and torch.is_grad_enabled() and query.requires_grad:
        raise StudfinderError("FlexAttention cannot train on a CPU", expected="kernel='blocks'")
    if isinstance(mask, torch.Tensor) and mask.dtype != torch.bool:
        raise StudfinderError("the flex kernel takes boolean masks", expected="kernel='blocks'")

    def seen(score: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        if causal:
            return torch.where(q >= k, score, -torch.inf)
        if mask is not None:
            return torch.where(mask[b, h if mask.shape[1] > 1 else 0, q, k], score, -torch.inf)
        return score

    options: dict[str, Any] = {"scale": scale, "enable_gqa": True, "return_aux": AuxRequest(lse=True)}
    kernel: Any = flex_attention if query.device.type == "cpu" else _compiled()
    first = kernel(query, key, value, score_mod=seen, **options)[1].lse
    lse = torch.where(torch.isfinite(first), first, torch.inf)

    def clipped(score: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        p = torch.exp(seen(score, b, h, q, k) - lse[b, h, q])
        weight = (1 - gamma) * p + gamma
        return torch.where(weight > 0, torch.log(weight.clamp(min=torch.finfo(weight.dtype).tiny)), -torch.inf)

    out, aux = kernel(query, key, value, score_mod=clipped, **options)
    total = torch.exp(aux.lse).to(out.dtype).unsqueeze(-1)
    return torch.where(total > 0, out * total, 0)


@cache
def _compiled() -> Any:
    # Not on a CPU: compiled there it cannot return the log-sum-exp.
    return torch.compile(flex_attention)

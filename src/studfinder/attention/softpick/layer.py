"""Softpick as it runs: in blocks, with its own backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from studfinder.attention.blocks import WEIGHT_FUNCTIONS, RowRange, attend_in_blocks
from studfinder.attention.softpick.naive import EPSILON
from studfinder.attention.variant import Part, Role, Variant


class SoftpickPart(Part):
    """Without parameters."""

    def attend(self, query: Any, key: Any, value: Any, mask: Any, causal: bool, scale: float) -> torch.Tensor:
        return attend_in_blocks(query, key, value, mask, causal, scale, "softpick", [])


@dataclass(frozen=True, kw_only=True)
class Softpick(Variant):
    """relu(e^s - 1) / sum |e^s - 1| instead of softmax (Zuhri et al. 2025, arXiv 2504.20966).

    A key with a score of at most 0 gets exactly nothing. No start leaves a softmax model as it is.
    """

    name: ClassVar[str] = "softpick"
    role: ClassVar[Role] = "weights"
    inits: ClassVar[tuple[str, ...]] = ("fresh",)
    own_function: ClassVar[bool] = True
    part_type: ClassVar[type[Part]] = SoftpickPart


@dataclass(frozen=True)
class Picked:
    """The weight function of the block loop: u = e^(s - top) - e^(-top), weights relu(u), factor 1 / sum
    |u|."""

    def forward(self, scores: torch.Tensor, blocked: torch.Tensor | None, rows: RowRange) -> tuple[Any, Any, Any]:
        top = scores.amax(dim=-1, keepdim=True).clamp_(min=0)
        e = scores.sub_(top).exp_()
        u = e - torch.exp(-top)
        if blocked is not None:
            u.masked_fill_(blocked, 0)
        elif rows.causal:
            u.tril_(rows.first)
        # |u| summed in one pass; a norm does not make a tensor of its own.
        factor = 1 / (torch.linalg.vector_norm(u, ord=1, dim=-1, keepdim=True) + EPSILON)
        weights = u.clamp(min=0)
        return weights, factor, (e, u, weights, factor)

    def backward(self, grad: torch.Tensor, state: Any) -> torch.Tensor:
        e, u, weights, factor = state
        row = torch.linalg.vecdot(grad, weights).unsqueeze(-1) * factor
        kept = torch.ops.aten.threshold_backward(grad, weights, 0.0)
        return kept.sub_(u.sign_().mul_(row)).mul_(e)


WEIGHT_FUNCTIONS["softpick"] = Picked

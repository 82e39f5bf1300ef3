"""Clipped softmax as it runs: in blocks, with its own backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F

from studfinder.attention.blocks import WEIGHT_FUNCTIONS, RowRange, attend_in_blocks
from studfinder.attention.variant import Part, Role, Variant


class ClippedPart(Part):
    """Without parameters."""

    def attend(self, query: Any, key: Any, value: Any, mask: Any, causal: bool, scale: float) -> torch.Tensor:
        if self.settings.kernel == "flex":
            from studfinder.attention.clipped_softmax import flex

            return flex.clipped_flex_attention(query, key, value, mask, causal, scale, self.settings.offset)
        numbers = [self.settings.offset, self.settings.zeta, float(self.settings.per_row)]
        return attend_in_blocks(query, key, value, mask, causal, scale, "clipped_softmax", numbers)


@dataclass(frozen=True, kw_only=True)
class ClippedSoftmax(Variant):
    """clip((zeta - gamma) softmax + gamma, 0, 1) (Bondarenko et al. 2023, arXiv 2306.12929, section 4.1).

    Weights below -gamma / (zeta - gamma) become exactly zero and get no gradient. Give `gamma`, or `alpha`
    and the training length T for gamma = -alpha / T, or `alpha` and `per_row` for gamma = -alpha / (keys the
    row may see). It has no start that leaves a trained softmax model as it is.

    Attributes:
        gamma: at most 0.
        zeta: at least 1. In the paper only gamma matters.
        alpha: the paper finds 2 to 4 good for BERT at T = 32..256.
        length: T, fixed: not the length of the current sequence.
        per_row: gamma by row, so that early causal rows, which have few keys, can be clipped too.
        kernel: "blocks" everywhere; "flex" is FlexAttention in two passes, on a CPU for inference only.
    """

    name: ClassVar[str] = "clipped_softmax"
    role: ClassVar[Role] = "weights"
    inits: ClassVar[tuple[str, ...]] = ("fresh",)
    own_function: ClassVar[bool] = True
    part_type: ClassVar[type[Part]] = ClippedPart

    gamma: float | None = None
    zeta: float = 1.0
    alpha: float | None = None
    length: int | None = None
    per_row: bool = False
    kernel: Literal["blocks", "flex"] = "blocks"

    def rules(self) -> Iterator[tuple[bool, str, str]]:
        yield from super().rules()
        gamma, zeta, alpha, length = self.gamma, self.zeta, self.alpha, self.length
        by_alpha, both = alpha is not None, (gamma is None) == (alpha is None)
        yield both, "ClippedSoftmax needs gamma or alpha, and not both", "e.g. alpha=4, length=T"
        yield not (gamma is None or -1e6 < gamma <= 0), f"gamma={gamma} is out of range", "a finite gamma of at most 0"
        yield not 1 <= zeta < 1e6, f"zeta={zeta} is out of range", "a finite zeta of at least 1"
        yield not (alpha is None or 0 <= alpha < 1e6), f"alpha={alpha} is out of range", "a finite alpha of at least 0"
        twice = by_alpha and (length is None) != self.per_row
        yield twice, "alpha needs the training length or per_row, and not both", "alpha=4, length=T"
        short = length is not None and (not by_alpha or length < 1)
        yield short, f"length={length} does not fit", "a training length beside alpha"
        yield self.per_row and not by_alpha, "per_row needs alpha", "ClippedSoftmax(alpha=4, per_row=True)"
        flex = self.kernel == "flex" and (self.per_row or zeta != 1)
        yield flex, "the flex kernel knows one gamma and zeta = 1", "kernel='blocks'"

    @property
    def offset(self) -> float:
        """gamma, or -alpha where it is divided by row."""
        if self.gamma is not None:
            return self.gamma
        assert self.alpha is not None
        return -self.alpha if self.per_row else -self.alpha / (self.length or 1)


@dataclass(frozen=True)
class Clipped:
    """The weight function of the block loop.

    With c = clip((zeta - gamma) p + gamma, 0, 1), the weights are c / (zeta - gamma) = min(relu(p - tau),
    cap), so that one shift does the work and the factor goes to the output. The row term of the softmax's
    gradient is sum_j p_j dP_j over the entries that are neither zero nor saturated; in terms of the output it
    is dO . (O - gamma * sum of their V - sum of the saturated V), not flash attention's dO . O.
    """

    gamma: float
    zeta: float
    per_row: float

    def forward(self, scores: torch.Tensor, blocked: torch.Tensor | None, rows: RowRange) -> tuple[Any, Any, Any]:
        p = torch.softmax(scores, dim=-1)
        if blocked is not None:
            p.masked_fill_(blocked, 0)  # a row that sees nothing is NaN until here
        span: Any = self.zeta - self.gamma
        if self.per_row:
            gamma = self.gamma / rows.visible(blocked, p)
            span = self.zeta - gamma
            weights = (p + gamma / span).clamp_(min=0)
        else:
            weights = F.softshrink(p, -self.gamma / span)
        cap: Any = None
        if self.zeta > 1:  # otherwise p = 1 is the largest value and gives 1
            cap = 1 / span
            weights = weights.clamp(max=cap)
        return weights, span, (p, weights, cap)

    def backward(self, grad: torch.Tensor, state: Any) -> torch.Tensor:
        p, weights, cap = state
        kept = torch.ops.aten.threshold_backward(grad, weights, 0.0)  # 0 where the weight is 0
        if cap is not None:
            kept.masked_fill_(weights >= cap, 0)
        row = torch.linalg.vecdot(kept, p).unsqueeze(-1)
        return kept.sub_(row).mul_(p)


WEIGHT_FUNCTIONS["clipped_softmax"] = Clipped

"""Clipped softmax as it runs: in blocks, with its own backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F

from studfinder.attention.blocks import WEIGHT_FUNCTIONS, RowRange, attend_in_blocks
from studfinder.attention.variant import AttentionShape, Part, Role, Variant
from studfinder.errors import StudfinderError


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

    gamma: float | None = None
    zeta: float = 1.0
    alpha: float | None = None
    length: int | None = None
    per_row: bool = False
    kernel: Literal["blocks", "flex"] = "blocks"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.gamma is None) == (self.alpha is None):
            raise StudfinderError(
                "ClippedSoftmax needs gamma or alpha, and not both", expected="e.g. alpha=4, length=T"
            )
        if self.gamma is not None and not -1e6 < self.gamma <= 0:
            raise StudfinderError(f"gamma={self.gamma} is out of range", expected="a finite gamma of at most 0")
        if not 1 <= self.zeta < 1e6:
            raise StudfinderError(f"zeta={self.zeta} is out of range", expected="a finite zeta of at least 1")
        if self.alpha is not None and not 0 <= self.alpha < 1e6:
            raise StudfinderError(f"alpha={self.alpha} is out of range", expected="a finite alpha of at least 0")
        if self.alpha is not None and (self.length is None) != self.per_row:
            raise StudfinderError(
                "alpha needs the training length or per_row, and not both", expected="alpha=4, length=T"
            )
        if self.length is not None and (self.alpha is None or self.length < 1):
            raise StudfinderError(f"length={self.length} does not fit", expected="a training length beside alpha")
        if self.per_row and self.alpha is None:
            raise StudfinderError("per_row needs alpha", expected="ClippedSoftmax(alpha=4, per_row=True)")
        if self.kernel == "flex" and (self.per_row or self.zeta != 1):
            raise StudfinderError("the flex kernel knows one gamma and zeta = 1", expected="kernel='blocks'")

    @property
    def offset(self) -> float:
        """gamma, or -alpha where it is divided by row."""
        if self.gamma is not None:
            return self.gamma
        assert self.alpha is not None
        return -self.alpha if self.per_row else -self.alpha / (self.length or 1)

    def part(self, shape: AttentionShape, layer: int) -> ClippedPart:
        return ClippedPart(self)


class ClippedPart(Part):
    """Without parameters."""

    def __init__(self, settings: ClippedSoftmax) -> None:
        super().__init__()
        self.settings = settings

    def attend(self, query: Any, key: Any, value: Any, mask: Any, causal: bool, scale: float) -> torch.Tensor:
        """query (B, H, T, D), key and value (B, G, S, D) -> (B, H, T, D)."""
        if self.settings.kernel == "flex":
            from studfinder.attention.clipped_softmax import flex

            return flex.clipped_flex_attention(query, key, value, mask, causal, scale, self.settings.offset)
        numbers = [self.settings.offset, self.settings.zeta, float(self.settings.per_row)]
        return attend_in_blocks(query, key, value, mask, causal, scale, "clipped_softmax", numbers)


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

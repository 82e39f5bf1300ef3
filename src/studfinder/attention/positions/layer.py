"""Position encodings as they run, for control experiments. All change a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F

from studfinder.attention.positions.naive import slopes
from studfinder.attention.variant import AttentionShape, Part, Role, Variant
from studfinder.errors import StudfinderError

Embeddings = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class RoPE(Variant):
    """Rotary positions on a part of the pairs.

    Attributes:
        kind: "partial" rotates the first `fraction` of the dims, with frequencies spread over the whole range
            (so 1 / fraction must be whole: every k-th of the model's own); "p-rope" keeps the fastest
            `fraction` of the pairs and stops the others (Barbero et al. 2025, arXiv 2410.06205).
        fraction: 1 is the model's own RoPE.
    """

    name: ClassVar[str] = "rope"
    role: ClassVar[Role] = "positions"
    inits: ClassVar[tuple[str, ...]] = ("fresh",)

    kind: Literal["partial", "p-rope"] = "p-rope"
    fraction: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.fraction <= 1:
            raise StudfinderError(
                f"fraction={self.fraction} is out of range",
                expected="above 0 and at most 1; NoPE() has none at all",
            )
        if self.kind == "partial" and (1 / self.fraction) % 1:
            raise StudfinderError(
                f"partial RoPE of fraction {self.fraction} is not supported", expected="1, 1/2, 1/4, ..."
            )

    def check(self, shape: AttentionShape) -> None:
        pairs = shape.head_dim // 2
        if self.kind == "partial" and pairs % round(1 / self.fraction):
            raise StudfinderError(f"{pairs} pairs of dims do not split by {self.fraction}", expected="a divisor")

    def part(self, shape: AttentionShape, layer: int) -> RoPEPart:
        return RoPEPart(self)


class RoPEPart(Part):
    """Without parameters."""

    def __init__(self, settings: RoPE) -> None:
        super().__init__()
        self.settings = settings

    def embeddings(self, cos_BTD: torch.Tensor, sin_BTD: torch.Tensor) -> Embeddings | None:
        """The model's cosines and sines (two equal halves, fastest pair first), changed."""
        pairs = cos_BTD.shape[-1] // 2
        if self.settings.kind == "p-rope":
            stopped = torch.arange(pairs, device=cos_BTD.device) >= round(self.settings.fraction * pairs)
            stopped = stopped.repeat(2)
            return cos_BTD.masked_fill(stopped, 1), sin_BTD.masked_fill(stopped, 0)
        step = round(1 / self.settings.fraction)
        cos, sin = cos_BTD[..., :pairs:step], sin_BTD[..., :pairs:step]
        # Pair j of the rotate-half layout is (j, j + pairs); the rotated ones are the first pairs of the
        # head.
        cos, sin = F.pad(cos, (0, pairs - cos.shape[-1]), value=1.0), F.pad(sin, (0, pairs - sin.shape[-1]))
        return torch.cat([cos, cos], dim=-1), torch.cat([sin, sin], dim=-1)


@dataclass(frozen=True, kw_only=True)
class NoPE(Variant):
    """No positions at all: the causal mask alone tells order (Kazemnejad et al. 2023, arXiv 2305.19466)."""

    name: ClassVar[str] = "nope"
    role: ClassVar[Role] = "positions"
    inits: ClassVar[tuple[str, ...]] = ("fresh",)

    def part(self, shape: AttentionShape, layer: int) -> NoPEPart:
        return NoPEPart()


class NoPEPart(Part):
    """Without parameters."""

    def embeddings(self, cos_BTD: torch.Tensor, sin_BTD: torch.Tensor) -> Embeddings | None:
        return None


@dataclass(frozen=True, kw_only=True)
class ALiBi(Variant):
    """Scores minus slope * distance (Press et al. 2022, arXiv 2108.12409); nothing is rotated.

    A control, not a fast path: its bias is dense, (H, T, S).

    Attributes:
        slope: one slope for all heads; None is the paper's geometric series.
    """

    name: ClassVar[str] = "alibi"
    role: ClassVar[Role] = "positions"
    inits: ClassVar[tuple[str, ...]] = ("fresh",)
    own_function: ClassVar[bool] = True

    slope: float | None = None

    def part(self, shape: AttentionShape, layer: int) -> ALiBiPart:
        return ALiBiPart([self.slope] * shape.heads if self.slope is not None else slopes(shape.heads))


class ALiBiPart(NoPEPart):
    """Without parameters."""

    def __init__(self, slope_H: list[float]) -> None:
        super().__init__()
        self.slopes = slope_H

    def attend(self, query: Any, key: Any, value: Any, mask: Any, causal: bool, scale: float) -> torch.Tensor:
        """query (B, H, T, D), key and value (B, G, S, D) -> (B, H, T, D)."""
        queries, keys = query.shape[2], key.shape[2]
        place_S = torch.arange(keys, device=query.device)
        # A static cache has empty keys behind the queries and so shifts every distance by one number per row,
        # which softmax does not see.
        distance_TS = place_S[-queries:, None] - place_S
        if causal:
            mask = (distance_TS >= 0)[None, None]
        slope_H = torch.tensor(self.slopes, device=query.device, dtype=query.dtype)
        bias = -slope_H[:, None, None] * distance_TS.abs().to(query.dtype)
        if mask is not None:
            additive = mask.dtype != torch.bool
            bias = bias + mask if additive else bias.masked_fill(~mask, -torch.inf)
        bias = bias.expand(query.shape[0], -1, -1, -1)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale, enable_gqa=True)

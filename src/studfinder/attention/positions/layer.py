"""Position encodings as they run, for control experiments. All change a trained model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F

from studfinder.attention.places import Pairs
from studfinder.attention.positions.naive import slopes
from studfinder.attention.variant import AttentionShape, Part, Role, Variant
from studfinder.errors import StudfinderError

Embeddings = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines (..., R), or both as one complex tensor."""


class RoPEPart(Part):
    """Without parameters."""

    def embeddings(self, given: Embeddings, lie: Pairs) -> Embeddings:
        """The model's cosines and sines (fastest pair first), changed."""
        if isinstance(given, torch.Tensor):
            return torch.complex(*self.turned(given.real, given.imag))
        once = {"halves": lambda x: x[..., : x.shape[-1] // 2], "neighbours": lambda x: x[..., ::2]}.get(lie)
        cos, sin = self.turned(*given) if once is None else self.turned(*map(once, given))
        if lie == "halves":
            return torch.cat([cos, cos], dim=-1), torch.cat([sin, sin], dim=-1)
        return (cos, sin) if once is None else (cos.repeat_interleave(2, dim=-1), sin.repeat_interleave(2, dim=-1))

    def turned(self, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One cosine and one sine a pair (..., R / 2), changed."""
        pairs = cos.shape[-1]
        if self.settings.kind == "p-rope":
            stopped = torch.arange(pairs, device=cos.device) >= round(self.settings.fraction * pairs)
            return cos.masked_fill(stopped, 1), sin.masked_fill(stopped, 0)
        step = round(1 / self.settings.fraction)
        cos, sin = cos[..., ::step], sin[..., ::step]  # the pairs that still turn are the first of the head
        return F.pad(cos, (0, pairs - cos.shape[-1]), value=1.0), F.pad(sin, (0, pairs - sin.shape[-1]))


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
    part_type: ClassVar[type[Part]] = RoPEPart

    kind: Literal["partial", "p-rope"] = "p-rope"
    fraction: float = 1.0

    def rules(self) -> Iterator[tuple[bool, str, str]]:
        yield from super().rules()
        fraction = self.fraction
        within = "above 0 and at most 1; NoPE() has none at all"
        yield not 0 < fraction <= 1, f"fraction={fraction} is out of range", within
        uneven = self.kind == "partial" and bool((1 / fraction) % 1)
        yield uneven, f"partial RoPE of fraction {fraction} is not supported", "1, 1/2, 1/4, ..."

    def check(self, shape: AttentionShape) -> None:
        pairs = (shape.turned or shape.head_dim) // 2
        if self.kind == "partial" and pairs % round(1 / self.fraction):
            raise StudfinderError(f"{pairs} pairs of dims do not split by {self.fraction}", expected="a divisor")


class NoPEPart(Part):
    """Without parameters."""

    def embeddings(self, given: Embeddings, lie: Pairs) -> Embeddings:
        if isinstance(given, torch.Tensor):
            return torch.ones_like(given)
        return torch.ones_like(given[0]), torch.zeros_like(given[1])


@dataclass(frozen=True, kw_only=True)
class NoPE(Variant):
    """No positions at all: the causal mask alone tells order (Kazemnejad et al. 2023, arXiv 2305.19466)."""

    name: ClassVar[str] = "nope"
    role: ClassVar[Role] = "positions"
    inits: ClassVar[tuple[str, ...]] = ("fresh",)
    part_type: ClassVar[type[Part]] = NoPEPart


class ALiBiPart(NoPEPart):
    """Without parameters."""

    def __init__(self, settings: ALiBi, shape: AttentionShape) -> None:
        super().__init__(settings, shape)
        self.slopes = slopes(shape.heads) if settings.slope is None else [settings.slope] * shape.heads

    def attend(self, query: Any, key: Any, value: Any, mask: Any, causal: bool, scale: float) -> torch.Tensor:
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
    part_type: ClassVar[type[Part]] = ALiBiPart

    slope: float | None = None

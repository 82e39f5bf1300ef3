"""Differential attention as it runs: one attention call with twice the query heads, then a subtraction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from studfinder.attention.variant import AttentionShape, Part, Role, Variant
from studfinder.errors import StudfinderError


class DifferentialPart(Part):
    """`query_weight` (H * D, C), `query_bias` (H * D,), `strength_weight` (H, C), `strength_bias` (H,)."""

    decays = frozenset({"query_weight", "strength_weight"})

    query_weight: nn.Parameter
    query_bias: nn.Parameter
    strength_weight: nn.Parameter
    strength_bias: nn.Parameter

    def sizes(self) -> dict[str, tuple[int, ...]]:
        heads, wide, hidden = self.shape.heads, self.shape.heads * self.shape.head_dim, self.shape.hidden
        weights = {"query_weight": (wide, hidden), "query_bias": (wide,)}
        return {**weights, "strength_weight": (heads, hidden), "strength_bias": (heads,)}

    @torch.no_grad()
    def reset(self) -> None:
        self.query_weight.normal_(0, 0.02)
        self.query_bias.zero_()
        self.strength_weight.normal_(0, 0.02) if self.settings.init == "fresh" else self.strength_weight.zero_()
        self.strength_bias.zero_()

    @torch.no_grad()
    def start_from(self, query: Any) -> None:
        if self.settings.init == "copy":
            self.query_weight.copy_(query.weight)
            if query.bias is not None:
                self.query_bias.copy_(query.bias)

    def queries(self, query_BTHD: torch.Tensor, hidden_BTC: torch.Tensor) -> torch.Tensor:
        """Both queries of every head, (B, T, 2H, D): head h's are 2h and 2h + 1, so they share its key
        head."""
        second = F.linear(hidden_BTC, self.query_weight, self.query_bias).view_as(query_BTHD)
        return torch.stack([query_BTHD, second], dim=3).flatten(2, 3)

    def subtract(self, mixed_BTHD: torch.Tensor, hidden_BTC: torch.Tensor) -> torch.Tensor:
        """(B, T, 2H, D) -> (B, T, H, D)."""
        strength = torch.sigmoid(F.linear(hidden_BTC, self.strength_weight, self.strength_bias))
        return mixed_BTHD[:, :, ::2] - strength.unsqueeze(-1) * mixed_BTHD[:, :, 1::2]


@dataclass(frozen=True, kw_only=True)
class Differential(Variant):
    """out_h = o_(2h) - sigmoid(strength_(t,h)) o_(2h+1) over the same keys and values (Diff Transformer,
    version 2).

    A second query projection gives the odd heads; the strength is linear in the layer's input. There is no
    RMSNorm and no lambda_init, unlike version 1.

    Attributes:
        init: "fresh" draws the second queries and the strengths from N(0, 0.02); it changes the model. "copy"
            is a start of our own that does not: the second queries are the first, so that out = o - o / 2,
            and W_o is doubled. It is exact and has a gradient, but is not the default, since no paper has
            trained from it.
    """

    name: ClassVar[str] = "differential"
    role: ClassVar[Role] = "queries"
    inits: ClassVar[tuple[str, ...]] = ("fresh", "copy")
    part_type: ClassVar[type[Part]] = DifferentialPart

    def check(self, shape: AttentionShape) -> None:
        if shape.head_dim % 2:
            raise StudfinderError(
                f"differential attention cannot pair heads of {shape.head_dim} dims",
                expected="an even head_dim",
            )

    @property
    def output_factor(self) -> float:
        return 2.0 if self.init == "copy" else 1.0

"""Gated attention as it runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from studfinder.attention.variant import AttentionShape, Part, Role, Variant
from studfinder.errors import StudfinderError

_WITH_BIAS = ("linear", "mlp", "all-heads")


class GatedPart(Part):
    """`weight` and, by kind, `bias` (H,): (H, C / H), (H, N) behind `weight_in` (H, N, C / H) and `bias_in`
    (H, N), (H, C) or (H * D, C)."""

    decays = frozenset({"weight", "weight_in"})

    weight: nn.Parameter
    bias: nn.Parameter
    weight_in: nn.Parameter
    bias_in: nn.Parameter

    def sizes(self) -> dict[str, tuple[int, ...]]:
        heads, kind = self.shape.heads, self.settings.kind
        cut = self.shape.hidden // heads
        units = self.settings.hidden or max(1, cut // 4)
        rows = heads * (self.shape.value_dim if kind == "elementwise" else 1)
        sizes: dict[str, tuple[int, ...]] = {
            "weight": (rows, {"linear": cut, "mlp": units}.get(kind, self.shape.hidden))
        }
        if kind in _WITH_BIAS:
            sizes["bias"] = (heads,)
        if kind == "mlp":
            sizes |= {"weight_in": (heads, units, cut), "bias_in": (heads, units)}
        return sizes

    @torch.no_grad()
    def reset(self) -> None:
        settings = self.settings
        spread = {"identity": 0.0, "paper": 0.001, "fresh": 0.02}[settings.init or "fresh"]
        self.weight.normal_(0, spread)
        if settings.kind in _WITH_BIAS:
            self.bias.fill_(math.log(settings.pi_init / (1 - settings.pi_init)))
        if settings.kind == "mlp":
            # Random also at the identity start: behind a zero output layer it changes nothing, and a zero one
            # would never get a gradient.
            self.weight_in.normal_(0, self.weight_in.shape[-1] ** -0.5)
            self.bias_in.zero_()

    def logits(self, hidden_BTC: torch.Tensor) -> torch.Tensor:
        """(B, T, H), or (B, T, H * D) element-wise."""
        kind = self.settings.kind
        if kind in ("linear", "mlp"):
            x = hidden_BTC.unflatten(-1, (self.shape.heads, -1))
            if kind == "mlp":
                x = torch.relu(torch.einsum("bths,hns->bthn", x, self.weight_in) + self.bias_in)
            return torch.einsum("bths,hs->bth", x, self.weight) + self.bias
        return F.linear(hidden_BTC, self.weight, self.bias if kind == "all-heads" else None)

    def forward(self, mixed_BTHD: torch.Tensor, hidden_BTC: torch.Tensor) -> torch.Tensor:
        """(B, T, H, D), gated."""
        gate = torch.sigmoid(self.logits(hidden_BTC))
        return mixed_BTHD * gate.view(*gate.shape[:2], self.shape.heads, -1)


@dataclass(frozen=True, kw_only=True)
class Gated(Variant):
    """sigmoid(gate(x_t)) * what head h writes at token t, before W_o; x_t is the attention layer's input.

    Always one gate per token: the published per-head gate that averages over tokens sees the future.

    Attributes:
        kind: Bondarenko et al. 2023 (arXiv 2306.12929): "linear" and "mlp" read the head's slice of x,
            "all-heads" reads all of x. Qiu et al. 2025 (arXiv 2505.06708, G1): "headwise" is "all-heads"
            without a bias, "elementwise" gives every dim of a head its own gate.
        hidden: units of the MLP; None is a quarter of the slice.
        pi_init: where a gate stands at the start, by its bias logit(pi_init); 1/2 for kinds without a bias.
        init: "identity": weights and bias 0, so that every gate is 1/2, and W_o doubled: bit-exact, and
            trainable as a saturated gate would not be. "paper": weights N(0, 0.001), bias logit(pi_init), W_o
            divided by pi_init (the paper's fine-tuning start: near, but not exact). "fresh": weights N(0,
            0.02), bias logit(pi_init), W_o as it is.
    """

    name: ClassVar[str] = "gated"
    role: ClassVar[Role] = "output"
    inits: ClassVar[tuple[str, ...]] = ("identity", "paper", "fresh")
    identity: ClassVar[str | None] = "identity"
    part_type: ClassVar[type[Part]] = GatedPart

    kind: Literal["linear", "mlp", "all-heads", "headwise", "elementwise"] = "headwise"
    hidden: int | None = None
    pi_init: float = 0.5

    def rules(self) -> Iterator[tuple[bool, str, str]]:
        yield from super().rules()
        moved = self.pi_init != 0.5
        yield not 0 < self.pi_init < 1, f"pi_init={self.pi_init} is no gate", "a number between 0 and 1"
        no_bias = moved and self.kind not in _WITH_BIAS
        yield no_bias, f"a {self.kind} gate has no bias to set pi_init with", "pi_init=0.5"
        exact = moved and self.init == "identity"
        yield exact, "the identity start has its gates at 1/2", "pi_init=0.5, or init='paper' or 'fresh'"
        units = self.hidden is not None and (self.kind != "mlp" or self.hidden < 1)
        yield units, f"hidden={self.hidden} does not fit", "kind='mlp' and hidden >= 1"

    def started(self, init: str | None) -> Variant:
        if self.pi_init != 0.5 and (init or self.init) is None:
            raise StudfinderError(
                f"a gate that starts at {self.pi_init} has no exact start",
                expected="init='paper' or init='fresh'",
            )
        return super().started(init)

    def check(self, shape: AttentionShape) -> None:
        if self.kind in ("linear", "mlp") and shape.hidden % shape.heads:
            raise StudfinderError(
                f"{shape.hidden} input dims cannot be cut into {shape.heads} equal slices",
                expected="kind='all-heads', which reads them all",
            )

    @property
    def output_factor(self) -> float:
        return {"identity": 2.0, "paper": 1 / self.pi_init}.get(self.init or "", 1.0)

"""Explicit attention bias as it runs: a sink whose logit is q . k' and whose value is v'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from studfinder.attention.sink import attend_with_sink
from studfinder.attention.variant import AttentionShape, Part, Role, Variant, parameter


@dataclass(frozen=True, kw_only=True)
class AttentionBias(Variant):
    """A learned key k' and value v' per key/value head, visible to every query (Sun et al. 2024, arXiv
    2402.17762).

    k' is used as it is: without norm and without position. "fresh" draws both from N(0, 0.02), as the authors
    do. No start leaves a model as it is.
    """

    name: ClassVar[str] = "attention_bias"
    role: ClassVar[Role] = "weights"
    inits: ClassVar[tuple[str, ...]] = ("fresh",)
    own_function: ClassVar[bool] = True

    def part(self, shape: AttentionShape, layer: int) -> AttentionBiasPart:
        return AttentionBiasPart(shape)


class AttentionBiasPart(Part):
    """`key` and `value`, (G, D) each."""

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__()
        self.key = parameter(shape.kv_heads, shape.head_dim)
        self.value = parameter(shape.kv_heads, shape.head_dim)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        self.key.normal_(0, 0.02)
        self.value.normal_(0, 0.02)

    def attend(self, query: Any, key: Any, value: Any, mask: Any, causal: bool, scale: float) -> torch.Tensor:
        """query (B, H, T, D), key and value (B, G, S, D) -> (B, H, T, D)."""
        repeats = query.shape[1] // key.shape[1]
        sink_key, sink_value = (x.repeat_interleave(repeats, dim=0) for x in (self.key, self.value))
        sink = torch.einsum("bhtd,hd->bht", query, sink_key) * scale
        return attend_with_sink(query, key, value, mask, causal, scale, sink, sink_value)

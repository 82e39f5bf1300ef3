"""Explicit attention bias as it runs: a sink whose logit is q . k' and whose value is v'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from studfinder.attention.sink import attend_with_sink
from studfinder.attention.variant import Part, Role, Variant


class AttentionBiasPart(Part):
    """`key` (G, D) and `value` (G, D of values)."""

    key: nn.Parameter
    value: nn.Parameter

    def sizes(self) -> dict[str, tuple[int, ...]]:
        return {"key": (self.shape.kv_heads, self.shape.head_dim), "value": (self.shape.kv_heads, self.shape.value_dim)}

    @torch.no_grad()
    def reset(self) -> None:
        self.key.normal_(0, 0.02)
        self.value.normal_(0, 0.02)

    def attend(self, query: Any, key: Any, value: Any, mask: Any, causal: bool, scale: float) -> torch.Tensor:
        repeats = query.shape[1] // key.shape[1]
        sink_key, sink_value = (x.repeat_interleave(repeats, dim=0) for x in (self.key, self.value))
        sink = torch.einsum("bhtd,hd->bht", query, sink_key) * scale
        return attend_with_sink(query, key, value, mask, causal, scale, sink, sink_value)


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
    part_type: ClassVar[type[Part]] = AttentionBiasPart

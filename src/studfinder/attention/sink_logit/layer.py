"""The sink logit as it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from studfinder.attention.sink import attend_with_sink
from studfinder.attention.variant import Part, Role, Variant


class SinkLogitPart(Part):
    """`logit` (H,)."""

    logit: nn.Parameter

    def sizes(self) -> dict[str, tuple[int, ...]]:
        return {"logit": (self.shape.heads,)}

    @torch.no_grad()
    def reset(self) -> None:
        self.logit.normal_(0, 0.02) if self.settings.init == "fresh" else self.logit.zero_()

    def attend(self, query: Any, key: Any, value: Any, mask: Any, causal: bool, scale: float) -> torch.Tensor:
        sink = self.logit[None, :, None].expand(query.shape[:3])
        return attend_with_sink(query, key, value, mask, causal, scale, sink)


@dataclass(frozen=True, kw_only=True)
class SinkLogit(Variant):
    """One learned logit per query head joins the softmax and gives nothing (as in gpt-oss).

    No trainable start leaves a model as it is: a logit of -inf would, and has no gradient. "fresh" draws N(0,
    0.02); "zero" starts as softmax off by one.
    """

    name: ClassVar[str] = "sink_logit"
    role: ClassVar[Role] = "weights"
    inits: ClassVar[tuple[str, ...]] = ("fresh", "zero")
    own_function: ClassVar[bool] = True
    part_type: ClassVar[type[Part]] = SinkLogitPart

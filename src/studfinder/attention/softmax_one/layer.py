"""Softmax off by one as it runs: a sink of logit 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from studfinder.attention.sink import attend_with_sink
from studfinder.attention.variant import Part, Role, Variant


class SoftmaxOnePart(Part):
    """Without parameters."""

    def attend(self, query: Any, key: Any, value: Any, mask: Any, causal: bool, scale: float) -> torch.Tensor:
        return attend_with_sink(query, key, value, mask, causal, scale, query.new_zeros(()).expand(query.shape[:3]))


@dataclass(frozen=True, kw_only=True)
class SoftmaxOne(Variant):
    """e^s / (1 + sum e^s): a head whose scores are all low does nothing. No start leaves a model as it is."""

    name: ClassVar[str] = "softmax_one"
    role: ClassVar[Role] = "weights"
    inits: ClassVar[tuple[str, ...]] = ("fresh",)
    own_function: ClassVar[bool] = True
    part_type: ClassVar[type[Part]] = SoftmaxOnePart

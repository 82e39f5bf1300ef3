"""RTN: round every number to the nearest code of its block."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.clip import Clip, search
from studfinder.quantizers.finite import finite_weight
from studfinder.quantizers.grid import Quantized, quantize_weight
from studfinder.quantizers.scheme import Scheme


@dataclass(frozen=True, kw_only=True)
class RTN:
    """Round to nearest.

    Attributes:
        scheme: how weights are stored.
        clip: search the range of each block by reconstruction error of the weights; None takes min and max.
    """

    calibrated: ClassVar[bool] = False

    scheme: Scheme = field(default_factory=lambda: Scheme(zero="integer"))
    clip: Clip | None = None

    def run(self, bench: Workbench) -> None:
        for target in bench.targets:
            weight_RC = finite_weight(target, bench.lm)
            bench.put(target, round_to_nearest(weight_RC, bench.own(self, target.name), bench.held.get(target.name)))


def round_to_nearest(weight_RC: torch.Tensor, config: RTN, held_RC: torch.Tensor | None = None) -> Quantized:
    """One matrix (out, in), any float dtype."""
    clip = None if config.clip is None else search(weight_RC, config.scheme, config.clip, held_RC=held_RC)
    return quantize_weight(weight_RC, config.scheme, held_RC=held_RC, clip=clip)

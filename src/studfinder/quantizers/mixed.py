"""Rounding to nearest, every fused group in a format of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from studfinder.models import LM
from studfinder.passes import Stream
from studfinder.quantizers.apply import bench_for
from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.formats import WeightFormat
from studfinder.quantizers.keep import Skip, skip
from studfinder.quantizers.rtn import RTN, round_to_nearest
from studfinder.quantizers.scheme import Scheme
from studfinder.quantizers.sensitivity import mask_of
from studfinder.quantizers.streams import quantized_stream
from studfinder.quantizers.targets import Target

KeptPlaces = Mapping[tuple[str, str], torch.Tensor]
"""By format and matrix, flat indices into (out, in) of the numbers that it keeps."""


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """A method of `quantized`; groups that are left in 16 bits are to be skipped, see `left_whole`.

    Attributes:
        formats: by fused group.
        kept: see `KeptPlaces`; needed of formats that keep something.
        scheme: nothing is read from it.
    """

    formats: Mapping[str, WeightFormat]
    kept: KeptPlaces = field(default_factory=dict)
    scheme: Scheme = field(default_factory=lambda: Scheme(block="tensor"))

    @property
    def calibrated(self) -> bool:
        return False

    def run(self, bench: Workbench) -> None:
        for target in bench.targets:
            chosen = self.formats[target.fused]
            assert chosen.scheme is not None, f"{target.fused} is left whole"
            weight_RC = target.weight(bench.lm)
            held_RC = None
            if chosen.count(weight_RC.shape):
                held_RC = mask_of(weight_RC.shape, self.kept[chosen.name, target.name], weight_RC.device)
            bench.put(target, round_to_nearest(weight_RC, RTN(scheme=chosen.scheme), held_RC))

    def left_whole(self, found: Sequence[Target]) -> Skip | None:
        """What to `keep` on the bench: the groups that are left in 16 bits; None if there are none."""
        names = [t.modules[0] for t in found if t.fused not in self.formats or self.formats[t.fused].scheme is None]
        return skip(*names) if names else None


def mixed_stream(lm: LM, method: Mixed, found: Sequence[Target]) -> Stream:
    """The model with every group in its format, as a stream of the engine.

    Args:
        found: every matrix that may be rounded.
    """
    return quantized_stream(bench_for(lm, method, found, keep=method.left_whole(found)), method)

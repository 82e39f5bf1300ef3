"""How large each input of each matrix is: squares summed over calibration text."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from studfinder.models import LM
from studfinder.quantizers.apply import bench_for
from studfinder.quantizers.rtn import RTN
from studfinder.quantizers.scheme import Scheme
from studfinder.quantizers.targets import Target
from studfinder.quantizers.walk import gathered, walk
from studfinder.runs import Progress, silent

Sums = tuple[torch.Tensor, int]
"""Squared inputs summed over tokens, (in,) fp64; and how many."""


def importance_sums(
    lm: LM, found: tuple[Target, ...], windows: Sequence[Sequence[int]], *, apart: bool, progress: Progress = silent
) -> dict[str, Sums]:
    """The sums of each matrix that a token entered, by its name.

    Args:
        apart: leave each window's first token out. Most models make an enormous spike of it, which is then nearly all
            of its channel's sum and of no other token. Where experts are sent only some of a window's tokens, which of
            them is the first is not known, and it counts.
    """
    length = len(windows[0])

    def statistic(_: str, x_NC: torch.Tensor) -> Sums:
        whole = apart and len(x_NC) == length
        x_NC = (x_NC[1:] if whole else x_NC).double()
        return x_NC.square().sum(dim=0).cpu(), len(x_NC)

    bench = bench_for(lm, RTN(scheme=Scheme(block="tensor")), found, windows=windows)  # nothing is rounded
    sums: dict[str, Sums] = {}
    for number, block in enumerate(walk(bench)):
        first = {target.reads: target.name for target in reversed(block.targets)}  # what is given the same is read once
        own = gathered(block, first.values(), statistic, lambda one, other: (one[0] + other[0], one[1] + other[1]))
        sums |= {t.name: own[first[t.reads]] for t in block.targets if first[t.reads] in own}
        progress("reading", number + 1, len(lm.anatomy.layers))
    return sums

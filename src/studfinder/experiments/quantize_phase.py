"""The phase null: the same groups, begun at another column. What that changes is what a difference must exceed."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from studfinder.quantizers import RTN, Quantized, Scheme, Workbench
from studfinder.quantizers.grid import kept_entries
from studfinder.quantizers.rtn import round_to_nearest


@dataclass(frozen=True, kw_only=True)
class Shifted:
    """Round to nearest in groups whose boundaries lie `shift` columns earlier; the group at the seam joins the first
    and the last columns. Scales, codes and bits are as many as without the shift, but for the table of columns.

    Attributes:
        rtn: its settings; groups along the input.
        shift: columns, 0 or more.
    """

    rtn: RTN = field(default_factory=RTN)
    shift: int = 0

    @property
    def scheme(self) -> Scheme:
        return self.rtn.scheme

    @property
    def calibrated(self) -> bool:
        return False

    def run(self, bench: Workbench) -> None:
        for target in bench.targets:
            weight_RC, held_RC = target.weight(bench.lm), bench.held.get(target.name)
            bench.put(target, self.rounded(weight_RC, held_RC))

    def rounded(self, weight_RC: torch.Tensor, held_RC: torch.Tensor | None = None) -> Quantized:
        """One matrix (out, in)."""
        held = None if held_RC is None else held_RC.roll(self.shift, dims=1)
        found = round_to_nearest(weight_RC.roll(self.shift, dims=1), self.rtn, held)
        columns = torch.arange(weight_RC.shape[1])
        group_C = (columns + self.shift) % weight_RC.shape[1] // int(self.scheme.block)  # type: ignore[arg-type]
        codes_RC = found.codes_RC.roll(-self.shift, dims=1)
        return Quantized(codes_RC, found.grid, self.scheme, kept_entries(weight_RC, held_RC), group_C)


def shifts(block: int, count: int) -> list[int]:
    """Shifts other than 0, evenly spread over a group."""
    return sorted({round(block * number / (count + 1)) for number in range(1, count + 1)} - {0, block})

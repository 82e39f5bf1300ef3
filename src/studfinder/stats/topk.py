"""The largest entries of a stream, with where they were."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from studfinder.stats.bits import INF, magnitude_bits, to_bits

_Entry = tuple[float, tuple[int, ...]]


def _order(entry: _Entry) -> tuple[float, tuple[int, ...]]:
    return -abs(entry[0]), entry[1]


@dataclass
class TopK:
    """The k entries of largest magnitude with their coordinates. Ties go to the smaller coordinates, so that the result
    does not depend on how the stream was cut."""

    k: int
    entries: list[_Entry] = field(default_factory=list)

    def add(self, values_NC: torch.Tensor, rows_Nd: torch.Tensor, bits_NC: torch.Tensor | None = None) -> None:
        """Look at a matrix.

        Args:
            values_NC: entries; inf, NaN and zeros are passed over.
            rows_Nd: integer coordinates of each row; an entry's coordinates are its row's and its column.
            bits_NC: `magnitude_bits(values_NC)`, if the caller has them.
        """
        if values_NC.numel() == 0:
            return
        bits = magnitude_bits(values_NC) if bits_NC is None else bits_NC
        # Rows first: one cheap reduction leaves only the few rows that can matter.
        most_N = bits.amax(dim=1)
        floor = max(1, self._floor(bits, most_N))
        rows = (most_N >= floor).nonzero()[:, 0]
        if not len(rows):
            return
        block = bits[rows]
        hits = ((block >= floor) & (block < INF)).nonzero()
        rows = rows[hits[:, 0]]
        values = values_NC[rows, hits[:, 1]].float().tolist()
        places = rows_Nd[rows.cpu()].tolist()
        self._keep([(v, (*place, c)) for v, place, c in zip(values, places, hits[:, 1].tolist(), strict=True)])

    def merge(self, other: TopK) -> None:
        """Take in another stream's entries. The result equals one made of both streams, exactly."""
        self._keep(other.entries)

    def _floor(self, bits: torch.Tensor, most_N: torch.Tensor) -> int:
        """Bits below which no entry can be among the k."""
        if len(self.entries) == self.k:
            return to_bits(abs(self.entries[-1][0]))
        # The k-th largest of the rows' largest is no larger than that of all.
        among = most_N if len(most_N) >= self.k and int(most_N.max()) < INF else bits.flatten()
        finite = among.where(among < INF, 0)
        return int(finite.topk(min(self.k, finite.numel())).values[-1])

    def _keep(self, more: list[_Entry]) -> None:
        self.entries = sorted([*self.entries, *more], key=_order)[: self.k]

"""Massive activations (Sun et al. 2024, arXiv 2402.17762, section 2).

A scalar a of the residual stream after block l is massive if |a| > 100 and |a| > 1000 x the median |a| of that layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from studfinder.models import LM
from studfinder.records import MassiveActivation
from studfinder.sites import BlockOutput
from studfinder.stats import AbsHistogram, TopK, magnitude_bits
from studfinder.texts import Batch, token_class, token_text

KEPT = 32
"""Largest entries remembered for each layer."""


@dataclass
class _Layer:
    top: TopK
    magnitudes: AbsHistogram


class MassiveActivations:
    """Per layer: the largest entries with their coordinates, and the median magnitude. Layer -1 is the embedding."""

    def __init__(self, lm: LM, *, absolute: float = 100.0, relative: float = 1000.0) -> None:
        self.lm, self.absolute, self.relative = lm, absolute, relative
        self.layers = {layer: _Layer(TopK(KEPT), AbsHistogram()) for layer in range(-1, len(lm.anatomy.layers))}
        self._rows: torch.Tensor | None = None
        self._where = torch.empty(0, 2, dtype=torch.long)

    def begin(self, batch: Batch) -> None:
        self._rows = batch.real_N
        flat = self._rows if self._rows is not None else torch.arange(batch.input_ids_BT.numel())
        self._where = batch.where(flat)

    @property
    def readers(self) -> Mapping[type, Callable[[list[Any]], None]]:
        return {BlockOutput: self._read}

    def _read(self, events: list[BlockOutput]) -> None:
        for event in events:
            hidden_NC = event.hidden_BTC.reshape(-1, event.hidden_BTC.shape[-1])
            if self._rows is not None:
                hidden_NC = hidden_NC[self._rows.to(hidden_NC.device)]
            layer = self.layers[event.layer]
            bits = magnitude_bits(hidden_NC)
            layer.top.add(hidden_NC, self._where, bits)
            layer.magnitudes.add_bits(bits)

    def merge(self, other: MassiveActivations) -> None:
        for index, layer in self.layers.items():
            layer.top.merge(other.layers[index].top)
            layer.magnitudes.merge(other.layers[index].magnitudes)

    def found(self, encoded: Sequence[Sequence[int]]) -> tuple[MassiveActivation, ...]:
        """The entries that pass the rule, by layer, largest first. `encoded` holds the prompts' token ids."""
        return tuple(entry for entry in self._all(encoded) if self._nearness(entry) > 1)

    def nearest(self, encoded: Sequence[Sequence[int]]) -> MassiveActivation | None:
        """The nearest miss: the entry that does not pass but has the largest share of both thresholds."""
        misses = [entry for entry in self._all(encoded) if self._nearness(entry) <= 1]
        return max(misses, key=self._nearness, default=None)

    def _all(self, encoded: Sequence[Sequence[int]]) -> list[MassiveActivation]:
        return [entry for layer in range(len(self.lm.anatomy.layers)) for entry in self.top(layer, encoded)]

    def _nearness(self, entry: MassiveActivation) -> float:
        return min(abs(entry.value) / self.absolute, entry.ratio / self.relative)

    def top(self, layer: int, encoded: Sequence[Sequence[int]], k: int = KEPT) -> list[MassiveActivation]:
        """The largest entries of a layer, massive or not."""
        median = self.layers[layer].magnitudes.median
        entries = []
        for value, (prompt, position, dim) in self.layers[layer].top.entries[:k]:
            token = token_text(self.lm, encoded[prompt][position])
            entries.append(
                MassiveActivation(
                    layer=layer,
                    dim=dim,
                    prompt=prompt,
                    position=position,
                    token=token,
                    token_class=token_class(token, position),
                    value=value,
                    median=median,
                    ratio=abs(value) / median if median else float("inf"),
                )
            )
        return entries

    def nonfinite(self) -> list[str]:
        """Sites where inf or NaN appeared."""
        return [
            "embedding" if index < 0 else f"residual[{index}]"
            for index, layer in self.layers.items()
            if layer.magnitudes.nonfinite
        ]

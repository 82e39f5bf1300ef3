"""Massive activations (Sun et al. 2024, arXiv 2402.17762, section 2).

A scalar a of the residual stream after block l is massive if |a| > 100 and |a| > 1000 x the median |a| of that layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from studfinder.detectors.detector import Detector, by_place
from studfinder.models import LM
from studfinder.records import MassiveActivation, ModelCard, Thresholds
from studfinder.sites import BlockOutput
from studfinder.stats import AbsHistogram, TopK, magnitude_bits
from studfinder.texts import Batch, token_class, token_text

KEPT = 32
"""Largest entries remembered for each layer."""


_PICTURED = 12
"""Tokens of the picture: the papers show as many."""


@dataclass
class _Layer:
    top: TopK
    magnitudes: AbsHistogram


@dataclass(frozen=True)
class _Picture:
    """The residual stream around the largest number of all: `order` sorts by its size, then by its place."""

    order: tuple[float, ...]
    layer: int
    prompt: int
    start: int
    hidden_TC: torch.Tensor


class MassiveActivations(Detector):
    """Per layer: the largest entries with their coordinates, and the median magnitude. Layer -1 is the embedding."""

    def __init__(self, lm: LM, at: Thresholds | None = None) -> None:
        super().__init__(lm, at)
        self.layers = {layer: _Layer(TopK(KEPT), AbsHistogram()) for layer in range(-1, len(lm.anatomy.layers))}
        self.picture: _Picture | None = None

    @property
    def readers(self) -> Mapping[type, Callable[[list[Any]], None]]:
        return {BlockOutput: self._read}

    def _read(self, seen: list[tuple[Batch, BlockOutput]]) -> None:
        for group in by_place(seen, "layer"):
            layer = self.layers[group[0][1].layer]
            hidden_NC = torch.cat([batch.real(event.hidden_BTC.flatten(0, 1)) for batch, event in group])
            bits_NC = magnitude_bits(hidden_NC)
            layer.top.add(hidden_NC, torch.cat([batch.places_N2 for batch, _ in group]), bits_NC)
            layer.magnitudes.add_bits(bits_NC)
            self._picture(group)

    def _picture(self, group: list[tuple[Batch, BlockOutput]]) -> None:
        """Keep a few tokens around the layer's largest number if it is the largest so far: it is in this group then."""
        index = group[0][1].layer
        entries = self.layers[index].top.entries
        if index < 0 or not entries:
            return
        value, place = entries[0]
        order = (-abs(value), index, *place)
        if self.picture is not None and self.picture.order <= order:
            return
        prompt, position, _ = place
        for batch, event in group:
            for row, name in enumerate(batch.prompts):
                if name == prompt:
                    late = min(position - _PICTURED // 2, batch.lengths[row] - _PICTURED)
                    start = 0 if position < _PICTURED else max(0, late)
                    own_TC = event.hidden_BTC[row, start : min(start + _PICTURED, batch.lengths[row])]
                    self.picture = _Picture(order, index, prompt, start, own_TC.detach().float().cpu().clone())

    def merge(self, other: MassiveActivations) -> None:
        super().merge(other)
        for index, layer in self.layers.items():
            layer.top.merge(other.layers[index].top)
            layer.magnitudes.merge(other.layers[index].magnitudes)
        seen = [one for one in (self.picture, other.picture) if one is not None]
        self.picture = min(seen, key=lambda one: one.order, default=None)

    def found(self) -> tuple[MassiveActivation, ...]:
        """The entries that pass the rule, by layer, largest first."""
        return tuple(entry for entry in self._all() if self._nearness(entry) > 1)

    def nearest(self) -> MassiveActivation | None:
        """The nearest miss: the entry that does not pass but has the largest share of both thresholds."""
        misses = [entry for entry in self._all() if self._nearness(entry) <= 1]
        return max(misses, key=self._nearness, default=None)

    def summary(self, model: ModelCard) -> dict[str, Any]:
        layers = [entry.layer for entry in self.found()]
        return {
            "enters": min(layers, default=None),
            "leaves": max(layers) + 1 if layers else None,
            "nearest_massive_activation": self.nearest(),
            "pictured": self._tokens(),
        }

    def _tokens(self) -> tuple[str, ...]:
        """Of the picture."""
        if self.picture is None:
            return ()
        ids = self.prompts[self.picture.prompt][self.picture.start :][: len(self.picture.hidden_TC)]
        return tuple(token_text(self.lm, one) for one in ids)

    def profile(self, model: ModelCard) -> dict[str, torch.Tensor]:
        """`residual.top` (L+1, 32), with its places as (prompt, position, dim) in `residual.top.where`, and
        `residual.median` (L+1,): all begin at the embedding. `residual.picture` (T, C): the tokens around the largest
        number of all, after its layer; `residual.picture.where`: that layer, the prompt and the first position."""
        layers = [self.layers[layer] for layer in sorted(self.layers)]
        k = max(len(layer.top.entries) for layer in layers)
        values, where = torch.full((len(layers), k), float("nan")), torch.full((len(layers), k, 3), -1)
        for row, layer in enumerate(layers):
            for column, (value, coordinates) in enumerate(layer.top.entries):
                values[row, column] = value
                where[row, column] = torch.tensor(coordinates)
        medians = torch.tensor([layer.magnitudes.median for layer in layers])
        found = {"residual.top": values, "residual.top.where": where, "residual.median": medians}
        if self.picture is not None:
            found["residual.picture"] = self.picture.hidden_TC
            at = (self.picture.layer, self.picture.prompt, self.picture.start)
            found["residual.picture.where"] = torch.tensor(at)
        return found

    def _all(self) -> list[MassiveActivation]:
        return [entry for layer in range(len(self.lm.anatomy.layers)) for entry in self.top(layer)]

    def _nearness(self, entry: MassiveActivation) -> float:
        return min(abs(entry.value) / self.at.activation, entry.ratio / self.at.activation_ratio)

    def top(self, layer: int, k: int = KEPT) -> list[MassiveActivation]:
        """The largest entries of a layer, massive or not."""
        median = self.layers[layer].magnitudes.median
        entries = []
        for value, (prompt, position, dim) in self.layers[layer].top.entries[:k]:
            beside = (
                self.prompts[prompt][place : place + 1] for place in (position, max(0, position - 1), position + 1)
            )
            token, before, after = ("".join(token_text(self.lm, one) for one in ids) for ids in beside)
            entries.append(
                MassiveActivation(
                    layer=layer,
                    dim=dim,
                    prompt=prompt,
                    position=position,
                    token=token,
                    token_class=token_class(token, position, before, after),
                    value=value,
                    median=median,
                    ratio=abs(value) / median if median else float("inf"),
                )
            )
        return entries

    def nonfinite(self) -> list[str]:
        return [
            "embedding" if index < 0 else f"residual[{index}]"
            for index, layer in self.layers.items()
            if layer.magnitudes.nonfinite
        ]

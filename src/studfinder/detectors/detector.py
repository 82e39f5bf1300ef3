"""What every detector has in common, and the list of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch

from studfinder.models import LM
from studfinder.records import ModelCard, Thresholds
from studfinder.texts import Batch

DETECTORS = {
    "super_weights": "studfinder.detectors.super_weights:SuperWeights",
    "massive_activations": "studfinder.detectors.massive_activations:MassiveActivations",
    "massive_values": "studfinder.detectors.massive_values:MassiveValues",
    "attention_sinks": "studfinder.detectors.attention_sinks:AttentionSinks",
}
"""Every detector, as module:class, by the name of its list in findings.json. A new one is one new file and one line
here."""


def every_detector(lm: LM, at: Thresholds) -> dict[str, Detector]:
    """A fresh one of each."""
    places = {name: place.split(":") for name, place in DETECTORS.items()}
    return {name: getattr(import_module(module), kind)(lm, at) for name, (module, kind) in places.items()}


class Detector:
    """Statistics of one phenomenon over a stream of batches, and the records and arrays that they make.

    A detector must have `readers`, `merge` and `found`; the rest is there for those that have more to say.

    Args:
        lm: the model that will be observed.
        at: when a number stands out.
    """

    def __init__(self, lm: LM, at: Thresholds | None = None) -> None:
        self.lm, self.at = lm, at or Thresholds()
        self.prompts: dict[int, list[int]] = {}  # token ids of what was seen

    def begin(self, batch: Batch) -> None:
        """Told a batch that is about to run."""
        self.prompts |= batch.ids

    @property
    def readers(self) -> Mapping[type, Callable[[list[Any]], None]]:
        """By kind of event, a function that reads a list of them, each with the batch that ran."""
        raise NotImplementedError

    def merge(self, other: Any) -> None:
        """Take in a detector of the same model that saw other prompts."""
        self.prompts |= other.prompts

    def found(self) -> Sequence[Any]:
        """The records, as dataclasses of plain data: the list in findings.json."""
        raise NotImplementedError

    def summary(self, model: ModelCard) -> dict[str, Any]:
        """Fields of the findings' summary."""
        return {}

    def profile(self, model: ModelCard) -> dict[str, torch.Tensor]:
        """Arrays for profile.safetensors, from which figures are redrawn."""
        return {}

    def nonfinite(self) -> Sequence[str]:
        """Sites where inf or NaN appeared."""
        return ()


def by_place(seen: Iterable[tuple[Batch, Any]], *names: str) -> list[list[tuple[Batch, Any]]]:
    """Events that are alike in some attributes, together: of one layer, say."""
    groups: dict[Any, list[tuple[Batch, Any]]] = {}
    for batch, event in seen:
        groups.setdefault(tuple(getattr(event, name) for name in names), []).append((batch, event))
    return list(groups.values())


def stacked(layers: Sequence[torch.Tensor]) -> torch.Tensor:
    """Layers as one array in fp32. Heads that were pruned from some of them are 0 there, as silent heads are."""
    sizes = [max(layer.shape[axis] for layer in layers) for axis in range(layers[0].dim())]
    whole = torch.zeros(len(layers), *sizes)
    for row, layer in zip(whole, layers, strict=True):
        row[tuple(slice(size) for size in layer.shape)] = layer
    return whole

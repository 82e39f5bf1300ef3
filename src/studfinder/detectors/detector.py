"""What every detector has in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from studfinder.texts import Batch

DETECTORS = {
    "super_weights": "studfinder.detectors.super_weights:SuperWeights",
    "massive_activations": "studfinder.detectors.massive_activations:MassiveActivations",
    "massive_values": "studfinder.detectors.massive_values:MassiveValues",
    "attention_sinks": "studfinder.detectors.attention_sinks:AttentionSinks",
}
"""Every detector, as module:class. A new one is one new file and one line here."""


@runtime_checkable
class Detector(Protocol):
    """Statistics of one phenomenon over a stream of batches.

    `begin` is told the batch that is about to run; `readers` maps kinds of events to functions that read a list
    of them, all of one forward pass; `merge` takes in a detector of the same model that saw other prompts.
    """

    def begin(self, batch: Batch) -> None: ...

    @property
    def readers(self) -> Mapping[type, Callable[[list[Any]], None]]: ...

    def merge(self, other: Any) -> None: ...

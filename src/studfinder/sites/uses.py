"""Which layer a module is running for, and for which time: a module may serve several layers, or be called twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import nn

from studfinder.models import LM
from studfinder.patches import Journal

_Owner = TypeVar("_Owner")


class Uses:
    """Counts calls within a forward pass.

    Attributes:
        layer: the block that runs now, or ran last; None before the first.
    """

    def __init__(self, lm: LM) -> None:
        self.lm = lm
        self.layer: int | None = None
        self.calls: Counter[nn.Module] = Counter()
        self._entered: dict[int, Counter[nn.Module]] = {}
        self.blocks: dict[nn.Module, list[int]] = {}
        for layer, part in enumerate(lm.anatomy.layers):
            self.blocks.setdefault(lm.model.get_submodule(part.block), []).append(layer)

    def watch(self, journal: Journal) -> None:
        """See passes begin and blocks be entered."""
        for module in dict.fromkeys((self.lm.model, self.lm.model.get_submodule(self.lm.anatomy.decoder))):
            journal.hook(module, self._begin, before=True)
        for block in self.blocks:
            journal.hook(block, self._enter, before=True)

    def count(self, module: nn.Module) -> int:
        """Count a call of a module; returns which it is in this forward pass, from 1."""
        self.calls[module] += 1
        return self.calls[module]

    def owner(self, owners: Sequence[tuple[int, _Owner]]) -> tuple[int, _Owner]:
        """Of the (layer, anything) pairs that share a module, the one that it is running for."""
        return next((pair for pair in owners if pair[0] == self.layer), owners[0])

    def at(self, layer: int) -> None:
        """As if all blocks before a layer had run: with what they counted, if they did, whatever text they ran for."""
        if layer == 0:
            self._entered.clear()
        if layer not in self._entered:
            counted = Counter(self.calls) if layer - 1 in self._entered else self._one_each(layer)
            self._entered[layer] = counted
        self.layer, self.calls = None, Counter(self._entered[layer])

    def _one_each(self, layer: int) -> Counter[nn.Module]:
        """What is counted where every layer before calls every module of its block once."""
        served = [block for block, layers in self.blocks.items() for one in layers if one < layer]
        return Counter(module for block in served for module in block.modules())

    def _begin(self, *_: Any) -> None:
        self.layer = None
        self.calls.clear()

    def _enter(self, block: nn.Module, _args: tuple) -> None:
        layers = self.blocks[block]  # a block that serves several layers is entered for each in turn
        self.layer = layers[(self.count(block) - 1) % len(layers)]

"""Which taps are active on a model, and what its hooks ask of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from studfinder.models import LM
from studfinder.patches import Journal
from studfinder.sites.events import ModelCall
from studfinder.sites.site import Site
from studfinder.sites.uses import Uses

Replacement = Callable[[torch.Tensor], torch.Tensor]
Reader = Callable[[Any], None]


@dataclass(eq=False)
class Tap:
    """What one caller wants of a model: readers by kind of event, replacements by site."""

    read: Mapping[type, Sequence[Reader]]
    replace: Mapping[Site, Replacement]
    pre_rope: bool = False


class Active:
    """The taps that are active on one model, and its hooks, which `install` sets up: each is given the model, this and
    the journal."""

    def __init__(self, lm: LM, install: Sequence[Callable[[LM, Active, Journal], None]]) -> None:
        self.lm, self.install = lm, install
        self.taps: list[Tap] = []
        self.replacing: list[Tap] = []
        self.readers: dict[type, list[Reader]] = {}
        self.uses = Uses(lm)
        self.hooks = Journal()

    def drop(self, tap: Tap) -> None:
        self.taps.remove(tap)
        if not self.taps:
            ACTIVE.pop(self.lm.model, None)
        self.reinstall()

    def reinstall(self) -> None:
        for problem in self.hooks.close():
            raise problem
        self.replacing = [tap for tap in self.taps if tap.replace]
        self.readers = {}
        for tap in self.taps:
            for event, readers in tap.read.items():
                self.readers.setdefault(event, []).extend(readers)
        if self.taps:
            for install in self.install:
                install(self.lm, self, self.hooks)

    # What hooks ask.

    def wants(self, event: type) -> bool:
        return event in self.readers

    @property
    def pre_rope(self) -> bool:
        kinds = {site.kind for tap in self.taps for site in tap.replace}
        return any(tap.pre_rope for tap in self.taps) or bool(kinds & {"query.pre_rope", "key.pre_rope"})

    def replaces(self, *kinds: str) -> bool:
        return any(site.kind in kinds for tap in self.taps for site in tap.replace)

    def replaced(self, site: Site, tensor: torch.Tensor) -> torch.Tensor:
        for tap in self.replacing:
            if site in tap.replace:
                tensor = tap.replace[site](tensor)
        return tensor

    def show(self, event: object) -> None:
        with torch.no_grad():
            for reader in self.readers.get(type(event), ()):
                reader(event)


ACTIVE: WeakKeyDictionary[nn.Module, Active] = WeakKeyDictionary()


def replacing(lm: LM) -> bool:
    """Whether anything is being replaced in this model right now.

    Who shares work between texts (a common prefix through the KV cache, say) must not while it is: token statistics
    would differ.
    """
    active = ACTIVE.get(lm.model)
    return active is not None and bool(active.replacing)


def watched(lm: LM) -> bool:
    """Whether anything is being read or replaced in this model right now."""
    return lm.model in ACTIVE


@contextmanager
def quiet(lm: LM) -> Iterator[None]:
    """While the context lasts no tap of this model sees or replaces anything: for passes not about the text."""
    active = ACTIVE.get(lm.model)
    if active is None:
        yield
        return
    for problem in active.hooks.close():
        raise problem
    try:
        yield
    finally:
        active.reinstall()


def entering(lm: LM, call: ModelCall, layer: int) -> None:
    """Tell taps that a block is about to be run by itself, as part of a call of the model."""
    active = ACTIVE.get(lm.model)
    if active is not None:
        active.uses.at(layer)
        active.show(call)

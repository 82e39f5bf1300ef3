"""Q and K before RoPE: what goes into the rotary step of a model's own file, seen and replaced there."""

from __future__ import annotations

import functools
import inspect
import re
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from studfinder.errors import StudfinderError
from studfinder.models import Mixer
from studfinder.models.interface import globals_of
from studfinder.patches import Journal
from studfinder.sites.active import Active
from studfinder.sites.site import Site

_STEP = re.compile(r"apply_(multimodal_)?rotary(_pos)?_emb(_interleave)?")
"""What transformers calls the function in the files of its models: of Q and K together, or of one after the other."""


class RotaryInputs:
    """Sees what goes into the rotary step, and which layer is running it."""

    def __init__(self, active: Active) -> None:
        self.active = active
        self.layer = 0
        self.mixer: Mixer | None = None
        self.query: torch.Tensor | None = None
        self.key: torch.Tensor | None = None

    def watch(self, owners: Sequence[tuple[int, Mixer]], module: nn.Module, journal: Journal) -> None:
        """Look at one attention module; nothing is seen of a file without such a step."""
        names = globals_of(module)

        def entering(_module: nn.Module, _args: tuple) -> None:
            self.layer, self.mixer = self.active.uses.owner(owners)
            self.query = self.key = None
            _RUNNING.rotary = self

        journal.hook(module, entering, before=True)
        for name in [name for name in names if _STEP.fullmatch(name)]:
            journal.share(names, name, partial(_rotate, names[name]))

    def show(
        self, query: torch.Tensor, key: torch.Tensor | None, layout: _Layout
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Replace Q and K on their way into RoPE, and remember them; an indexer's beside them are passed by."""
        mixer = self.mixer
        if mixer is None:
            return query, key
        if key is None and self.query is not None and self.key is None and layout.heads(query) in (1, mixer.kv_heads):
            self.key, key = layout.replaced(self.active, Site("key.pre_rope", self.layer), query)
            return key, None
        if self.query is not None or layout.heads(query) != mixer.heads:
            return query, key
        self.query, query = layout.replaced(self.active, Site("query.pre_rope", self.layer), query)
        if key is not None:
            self.key, key = layout.replaced(self.active, Site("key.pre_rope", self.layer), key)
        return query, key

    def take(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Q (B,H,T,D) and the new K (B,G,T,D) of this call before RoPE. Dims that a partial RoPE passes by are the same
        before and after; a part that all heads share, as MLA's keys do, is each one's.

        Raises:
            StudfinderError: they went through no rotary step that could be seen.
        """
        _RUNNING.rotary = None
        mixer = self.mixer
        if mixer is None or self.query is None or self.key is None or query.shape[1] != self.query.shape[1]:
            raise StudfinderError(f"layer {self.layer} hides its rotary step, so Q and K before RoPE cannot be seen")
        placed = []
        for whole, part in ((query, self.query), (key[..., -self.key.shape[-2] :, :], self.key)):
            if part.shape[1] not in (1, whole.shape[1]):
                raise StudfinderError(f"layer {self.layer} repeats its heads after RoPE: none is seen before it")
            if part.shape != whole.shape:
                whole = whole.clone()
                whole[..., mixer.turned : mixer.turned + part.shape[-1]] = part
                part = whole
            placed.append(part)
        return placed[0], placed[1]


class _Layout:
    """How a rotary step is given its tensors: heads before tokens or after, pairs of dims side by side that it takes
    apart itself."""

    def __init__(self, tokens_first: bool, interleaved: bool) -> None:
        self.tokens_first, self.interleaved = tokens_first, interleaved

    def heads(self, tensor: torch.Tensor) -> int:
        return tensor.shape[-2 if self.tokens_first else 1] if tensor.dim() == 4 else 0

    def replaced(self, active: Active, site: Site, tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What readers see, (B,H,T,D) with the dims in attention's order, and what goes on in the step's own layout."""
        own = tensor.transpose(1, 2) if self.tokens_first else tensor
        if self.interleaved:
            own = own.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
        new = active.replaced(site, own)
        if new is own:
            return own, tensor
        back = new.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2) if self.interleaved else new
        return new, back.transpose(1, 2) if self.tokens_first else back


class _Running(threading.local):
    """Whose attention module this thread is in, between its entry and its attention call."""

    rotary: RotaryInputs | None = None


_RUNNING = _Running()


def _rotate(original: Any) -> Any:
    """What stands in front of a file's rotary step: models of one architecture share the file."""
    signature = inspect.signature(original)
    first, second = list(signature.parameters)[:2]
    together = second.lower().lstrip("x").startswith("k")

    @functools.wraps(original)
    def rotate(*args: Any, **kwargs: Any) -> Any:
        rotary = _RUNNING.rotary
        if rotary is None:
            return original(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        # A step that does not say where heads are is given them where the attention has so many.
        heads = None if rotary.mixer is None or first != "xq" else rotary.mixer.heads
        behind = given.get("unsqueeze_dim") == 2 if heads is None else given[first].shape[1] != heads
        layout = _Layout(behind, original.__name__.endswith("_interleave"))
        query, key = rotary.show(given[first], given.get(second) if together else None, layout)
        given[first] = query
        if key is not None:
            given[second] = key
        return original(*bound.args, **bound.kwargs)

    return rotate

"""Run only the later blocks of a model, from what earlier ones gave in another pass over the same tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from studfinder.models import LM
from studfinder.patches import Journal


@contextmanager
def kept_outputs(lm: LM, layers: Collection[int]) -> Iterator[dict[int, Any]]:
    """Keep what the named blocks return, whatever its form, during the forward pass inside; by layer."""
    kept: dict[int, Any] = {}

    def keeper(layer: int) -> Any:
        def keep(_module: nn.Module, _args: tuple, output: Any) -> None:
            kept[layer] = output

        return keep

    with Journal(lm.model) as journal:
        for layer in layers:
            journal.hook(lm.model.get_submodule(lm.anatomy.layers[layer].block), keeper(layer))
        yield kept


@contextmanager
def resumed(lm: LM, layer: int, output: Any) -> Iterator[None]:
    """Blocks before `layer` are passed by, and `layer` gets `output`: what block `layer` - 1 returned before.

    Positions, masks and everything after are the model's own, so the logits are bit-equal to a full pass. Only
    without a cache: the blocks that are passed by would leave none there. For layer 0 nothing is passed by.
    """
    with Journal(lm.model) as journal:
        for part in lm.anatomy.layers[:layer]:
            journal.set(lm.model.get_submodule(part.block), "forward", lambda *_args, **_kwargs: output)
        yield

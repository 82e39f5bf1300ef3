"""What goes into modules that are no named site, e.g. a whole FFN."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from studfinder.models import LM
from studfinder.patches import Journal


@contextmanager
def module_inputs(lm: LM, names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Keep the first tensor that each named module is given in the forward pass inside, by name.

    Raises:
        AttributeError: there is no such module.
    """
    kept: dict[str, torch.Tensor] = {}

    def keeper(name: str) -> Any:
        def keep(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            given = args[0] if args else next(iter(kwargs.values()))
            kept[name] = given.detach()

        return keep

    with Journal(lm.model) as journal:
        for name in names:
            journal.hook(lm.model.get_submodule(name), keeper(name), before=True, with_kwargs=True)
        yield kept

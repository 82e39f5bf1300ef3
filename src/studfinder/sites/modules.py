"""What goes into modules that are no named site, e.g. a whole FFN."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from studfinder.models import LM


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

    modules = [lm.model.get_submodule(name) for name in names]
    handles = [
        module.register_forward_pre_hook(keeper(name), with_kwargs=True)
        for name, module in zip(names, modules, strict=True)
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()

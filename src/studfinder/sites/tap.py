"""The one mechanism that reads and replaces tensors of a running model.

All taps of a model share one set of hooks, which the patch journal takes out again. They run every replacement first
(in the order the taps were entered) and every reader after, so that a reader inside an edit, or an edit inside a
reader, sees the same thing. Attention is reached by wrapping whatever function the model's attention implementation
resolves to, under its own name: the config, the mask function and the kernel stay what they were.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from studfinder.models import LM
from studfinder.patches import Journal, held
from studfinder.sites.active import ACTIVE, Active, Reader, Replacement, Tap
from studfinder.sites.attention import attention_hooks
from studfinder.sites.calls import call_hooks
from studfinder.sites.events import BlockOutput
from studfinder.sites.parts import part_hooks
from studfinder.sites.site import Site
from studfinder.sites.writers import writer_hooks


@contextmanager
def tapped(
    lm: LM,
    *,
    read: Mapping[type, Sequence[Reader]] | None = None,
    replace: Mapping[Site, Replacement] | None = None,
    pre_rope: bool = False,
) -> Iterator[Tap]:
    """Read and replace tensors of the model while the context lasts; leave no trace after it.

    Args:
        read: readers by event type (ModelCall, BlockOutput, AttentionCall, WriterCall). They run without gradients.
        replace: functions by site; each gets the tensor and returns one of the same shape, dtype and device.
        pre_rope: give readers of AttentionCall Q and K from before RoPE too.

    Raises:
        StudfinderError: a site to replace is not in this model.
    """
    for site in replace or {}:
        site.check(lm)
    tap = Tap(read or {}, replace or {}, pre_rope)
    with uncompiled(), Journal(lm.model) as journal:
        with held:
            installed = ACTIVE.setdefault(lm.model, Active(lm, _HOOKS))
            installed.taps.append(tap)
            journal.then(partial(installed.drop, tap))
            installed.reinstall()
        yield tap


@contextmanager
def uncompiled() -> Iterator[None]:
    """Parts of the model that torch.compile has compiled run as they were written while the context lasts: hooks would
    be compiled along with them, or passed by. What they compute is the same."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes a second
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _use_hooks(_lm: LM, active: Active, journal: Journal) -> None:
    active.uses.watch(journal)


def _block_hooks(lm: LM, active: Active, journal: Journal) -> None:
    if active.wants(BlockOutput) or active.replaces("embedding"):
        first = lm.model.get_submodule(lm.anatomy.layers[0].block)
        journal.hook(first, _entry_hook(active), before=True, with_kwargs=True)
    if active.wants(BlockOutput) or active.replaces("residual"):
        for block, layers in active.uses.blocks.items():
            journal.hook(block, _exit_hook([(layer, None) for layer in layers], active))


def _entry_hook(active: Active) -> Any:
    def before(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if active.uses.layer:  # the block serves a later layer too
            return args, kwargs
        hidden = args[0] if args else kwargs["hidden_states"]
        new = _seen(active, Site("embedding"), -1, hidden)
        if new is hidden:
            return args, kwargs
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    return before


def _exit_hook(owners: Sequence[tuple[int, None]], active: Active) -> Any:
    def after(_module: nn.Module, _args: tuple, output: Any) -> Any:
        layer, _ = active.uses.owner(owners)
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        new = _seen(active, Site("residual", layer), layer, hidden)
        if new is hidden:
            return output
        return new if isinstance(output, torch.Tensor) else (new, *output[1:])

    return after


def _seen(active: Active, site: Site, layer: int, hidden: torch.Tensor) -> torch.Tensor:
    """Replace the residual stream and show it; several streams stand side by side, (B,T,streams * C)."""
    axis = active.lm.anatomy.stream_axis
    side_by_side = hidden if axis is None else hidden.movedim(axis, 2).flatten(2)
    new = active.replaced(site, side_by_side)
    active.show(BlockOutput(layer, new))
    if new is side_by_side:
        return hidden
    return new if axis is None else new.unflatten(2, (hidden.shape[axis], -1)).movedim(2, axis)


_HOOKS = (call_hooks, _use_hooks, _block_hooks, writer_hooks, attention_hooks, part_hooks)

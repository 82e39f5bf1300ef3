"""Hooks on the matrices that write from the FFN to the residual stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from studfinder.errors import StudfinderError
from studfinder.models import LM, MatrixRef
from studfinder.sites.events import WriterCall
from studfinder.sites.journal import Journal
from studfinder.sites.site import Site

if TYPE_CHECKING:
    from studfinder.sites.tap import _Installed


def writer_hooks(lm: LM, active: _Installed, journal: Journal) -> None:
    """Install hooks on every writer of every layer."""
    if not active.wants(WriterCall) and not active.replaces("down_proj.input", "down_proj.output"):
        return
    for layer, part in enumerate(lm.anatomy.layers):
        fused: dict[str, list[tuple[int, MatrixRef]]] = {}
        for writer, ref in enumerate(part.writers):
            if ref.expert is None:
                before, after = _linear_hooks(layer, writer, ref, active)
                journal.hook(lm.model.get_submodule(ref.module), before, before=True)
                journal.hook(lm.model.get_submodule(ref.module), after)
            else:
                fused.setdefault(ref.module, []).append((writer, ref))
        for name, experts in fused.items():
            journal.hook(lm.model.get_submodule(name), _experts_hook(layer, experts, active), with_kwargs=True)


def _linear_hooks(layer: int, writer: int, ref: MatrixRef, active: _Installed) -> tuple[Any, Any]:
    source, target = Site("down_proj.input", layer, writer), Site("down_proj.output", layer, writer)

    def before(_module: nn.Module, args: tuple) -> tuple | None:
        new = active.replaced(source, args[0])
        return None if new is args[0] else (new, *args[1:])

    def after(_module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        new = active.replaced(target, output)
        if active.wants(WriterCall):
            x, y = args[0], new
            active.show(WriterCall(layer, writer, ref, x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]), None))
        return None if new is output else new

    return before, after


def _experts_hook(layer: int, experts: list[tuple[int, MatrixRef]], active: _Installed) -> Any:
    """Read fused experts by computing, beside the model, what each expert saw and gave.

    The model's own experts implementation (grouped, batched, eager or a kernel) does not show these tensors, so they
    are recomputed from the module's inputs; the model's own numbers are not touched, whichever implementation runs.
    """
    for writer, _ in experts:
        for kind in ("down_proj.input", "down_proj.output"):
            if active.replaces(kind) and any(Site(kind, layer, writer) in tap.replace for tap in active.taps):
                raise StudfinderError(
                    f"{Site(kind, layer, writer)} belongs to a fused expert and cannot be replaced",
                    do="Edit the expert's weights, or the residual stream",
                )

    def after(module: nn.Module, args: tuple, kwargs: dict, _output: Any) -> None:
        if not active.wants(WriterCall):
            return
        hidden, chosen = _arguments(args, kwargs)
        hidden = hidden.reshape(-1, hidden.shape[-1])
        chosen = chosen.reshape(hidden.shape[0], -1)
        for writer, ref in experts:
            assert ref.expert is not None
            tokens = (chosen == ref.expert).any(dim=-1).nonzero()[:, 0]
            if tokens.numel():
                x, y = _expert(module, ref.expert, hidden[tokens])
                active.show(WriterCall(layer, writer, ref, x, y, tokens))

    return after


def _arguments(args: tuple, kwargs: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and chosen experts, by whatever name and position the architecture passes them."""
    hidden = args[0] if args else kwargs["hidden_states"]
    rest = [
        *args[1:],
        *(kwargs[k] for k in ("top_k_index", "router_indices", "selected_experts") if k in kwargs),
    ]
    return hidden, next(tensor for tensor in rest if not tensor.is_floating_point())


def _expert(module: Any, expert: int, hidden_NC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One expert's down_proj input (N,F) and output (N,C), in the module's own arithmetic."""
    with torch.no_grad():
        first = module.gate_up_proj[expert] if getattr(module, "has_gate", True) else module.up_proj[expert]
        down = module.down_proj[expert]
        if not getattr(module, "is_transposed", False):
            first, down = first.T, down.T
        biased = getattr(module, "has_bias", False)
        inner = hidden_NC @ first
        if biased:
            inner = (
                inner
                + (module.gate_up_proj_bias if hasattr(module, "gate_up_proj_bias") else module.up_proj_bias)[expert]
            )
        x = module._apply_gate(inner) if getattr(module, "has_gate", True) else module.act_fn(inner)
        y = x @ down
        return x, (y + module.down_proj_bias[expert]) if biased else y

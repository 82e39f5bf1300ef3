"""Hooks on the matrices that write from the FFN to the residual stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from studfinder.errors import StudfinderError
from studfinder.models import LM, MatrixRef
from studfinder.sites.active import Active
from studfinder.sites.events import WriterCall
from studfinder.patches import Journal
from studfinder.sites.site import Site


def writer_hooks(lm: LM, active: Active, journal: Journal) -> None:
    """Install hooks on every writer of every layer."""
    if not active.wants(WriterCall) and not active.replaces("down_proj.input", "down_proj.output"):
        return
    linears: dict[nn.Module, list[_Owner]] = {}
    fused: dict[nn.Module, list[tuple[int, list[tuple[int, MatrixRef]]]]] = {}
    for layer, part in enumerate(lm.anatomy.layers):
        experts: dict[nn.Module, list[tuple[int, MatrixRef]]] = {}
        for writer, ref in enumerate(part.writers):
            module = lm.model.get_submodule(ref.module)
            if ref.expert is None:
                linears.setdefault(module, []).append((layer, (writer, ref)))
            else:
                experts.setdefault(module, []).append((writer, ref))
        for module, members in experts.items():
            fused.setdefault(module, []).append((layer, members))
    for module, owners in linears.items():
        before, after = _linear_hooks(owners, active)
        journal.hook(module, before, before=True)
        journal.hook(module, after)
    for module, groups in fused.items():
        journal.hook(module, _experts_hook(groups, active), with_kwargs=True)


_Owner = tuple[int, tuple[int, MatrixRef]]
"""(layer, (writer, matrix)) that a module serves; more than one where layers share it."""


def _linear_hooks(owners: list[_Owner], active: Active) -> tuple[Any, Any]:
    def before(_module: nn.Module, args: tuple) -> tuple | None:
        layer, (writer, _) = active.uses.owner(owners)
        new = active.replaced(Site("down_proj.input", layer, writer), args[0])
        return None if new is args[0] else (new, *args[1:])

    def after(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        layer, (writer, ref) = active.uses.owner(owners)
        call = active.uses.count(module)
        new = active.replaced(Site("down_proj.output", layer, writer), output)
        if active.wants(WriterCall):
            x_NF, y_NC = args[0].reshape(-1, args[0].shape[-1]), new.reshape(-1, new.shape[-1])
            active.show(WriterCall(layer, writer, ref, x_NF, y_NC, None, call))
        return None if new is output else new

    return before, after


def _experts_hook(groups: list[tuple[int, list[tuple[int, MatrixRef]]]], active: Active) -> Any:
    """Read fused experts by computing, beside the model, what each expert saw and gave.

    The model's own experts implementation (grouped, batched, eager or a kernel) does not show these tensors, so they
    are recomputed from the module's inputs; the model's own numbers are not touched, whichever implementation runs.
    """
    for kind in ("down_proj.input", "down_proj.output"):
        for site in (Site(kind, layer, writer) for layer, experts in groups for writer, _ in experts):
            if active.replaces(kind) and any(site in tap.replace for tap in active.taps):
                raise StudfinderError(
                    f"{site} belongs to a fused expert and cannot be replaced",
                    do="Edit the expert's weights, or the residual stream",
                )

    def after(module: nn.Module, args: tuple, kwargs: dict, _output: Any) -> None:
        call = active.uses.count(module)
        if not active.wants(WriterCall):
            return
        layer, experts = active.uses.owner(groups)
        hidden, chosen = _arguments(args, kwargs)
        hidden = hidden.reshape(-1, hidden.shape[-1])
        chosen = chosen.reshape(hidden.shape[0], -1)
        for writer, ref in experts:
            assert ref.expert is not None
            tokens = (chosen == ref.expert).any(dim=-1).nonzero()[:, 0]
            if tokens.numel():
                x, y = _expert(module, ref.expert, hidden[tokens])
                active.show(WriterCall(layer, writer, ref, x, y, tokens, call))

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

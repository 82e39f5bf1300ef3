"""Hooks on the matrices that write from the FFN to the residual stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from studfinder.errors import StudfinderError
from studfinder.models import LM, MatrixRef, Writer
from studfinder.models.trace import Product, Products, experts_apart, tensors_in
from studfinder.patches import Journal
from studfinder.sites.active import Active
from studfinder.sites.events import WriterCall
from studfinder.sites.site import Site


def writer_hooks(lm: LM, active: Active, journal: Journal) -> None:
    """Install hooks on every writer of every layer."""
    if not active.wants(WriterCall) and not active.replaces("down_proj.input", "down_proj.output"):
        return
    linears: dict[nn.Module, list[_Owner]] = {}
    routed: dict[nn.Module, list[tuple[int, list[tuple[int, Writer]]]]] = {}
    for layer, part in enumerate(lm.anatomy.layers):
        experts = []
        for writer, ref in enumerate(part.writers):
            if ref.routed:
                experts.append((writer, ref))
            else:
                linears.setdefault(lm.model.get_submodule(ref.module), []).append((layer, (writer, ref)))
        if experts and part.experts is not None:
            routed.setdefault(lm.model.get_submodule(part.experts), []).append((layer, experts))
    for module, owners in linears.items():
        before, after = _linear_hooks(owners, active)
        journal.hook(module, before, before=True)
        journal.hook(module, after)
    names = {module: name for name, module in lm.model.named_modules()} if routed else {}
    for module, groups in routed.items():
        journal.hook(module, _experts_hook(names[module], groups, active), with_kwargs=True)


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


def _experts_hook(name: str, groups: list[tuple[int, list[tuple[int, Writer]]]], active: Active) -> Any:
    """Read experts by computing, beside the model, what each expert saw and gave.

    The model's own experts implementation (grouped, batched, eager or a kernel) does not show these tensors, so the
    module runs a second time, one expert after the other; the model's own numbers are not touched.
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
        wanted = {(ref.parameter.removeprefix(f"{name}."), ref.expert): (writer, ref) for writer, ref in experts}
        for place, (x_NF, y_NC, token_N) in _by_expert(module, args, kwargs, {name for name, _ in wanted}).items():
            writer, ref = wanted[place]
            active.show(WriterCall(layer, writer, ref, x_NF, y_NC, token_N, call))

    return after


_Place = tuple[str, int | None]
"""A parameter and which expert's slice of it."""


@torch.no_grad()
def _by_expert(
    module: nn.Module, args: tuple, kwargs: dict, wanted: set[str]
) -> dict[_Place, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Of each expert that a token reached: its down projection's input (N,F) and output (N,C), and which tokens."""
    hidden = tensors_in((args, kwargs))[0]
    hidden_NC = hidden.reshape(-1, hidden.shape[-1])
    found: dict[_Place, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
    entered: dict[int | None, torch.Tensor] = {}

    def seen(product: Product) -> None:
        apart = product.expert is not None or not product.experts
        whole = product.x[None] if apart else product.x.reshape(product.experts, -1, product.width)
        if product.parameter not in wanted:
            if product.width == hidden_NC.shape[1]:
                entered[product.expert] = whole
            return
        given = product.y.reshape(len(whole), -1, product.rows)
        for number, (x_NF, y_NC) in enumerate(zip(whole, given, strict=True)):
            expert = product.expert if apart else number
            first_NC = entered[product.expert][number]
            reached = (
                first_NC.any(dim=-1) if len(first_NC) == len(hidden_NC) else torch.ones(len(x_NF), dtype=torch.bool)
            )
            if not bool(reached.any()):
                continue
            # all tokens in order where the rows are as many, whatever they were multiplied with on the way
            token_N = reached.nonzero()[:, 0] if len(first_NC) == len(hidden_NC) else _tokens(first_NC, hidden_NC)
            found[product.parameter, expert] = x_NF[reached], y_NC[reached], token_N

    with Journal() as journal, Products(module, seen):
        experts_apart(module, journal)
        module.forward(*args, **kwargs)
    return found


def _tokens(rows_RC: torch.Tensor, hidden_NC: torch.Tensor) -> torch.Tensor:
    """Which rows of the hidden states some rows are copies of; equal ones in their order."""
    ours, theirs = _hashes(rows_RC), _hashes(hidden_NC)
    theirs, order = theirs.sort(stable=True)
    sorted_ours, place = ours.sort(stable=True)
    repeats = torch.arange(len(ours), device=ours.device) - torch.searchsorted(sorted_ours, sorted_ours)
    first = torch.searchsorted(theirs, sorted_ours)
    as_many = torch.searchsorted(theirs, sorted_ours, right=True) - first
    at = first + repeats % as_many.clamp(min=1)  # a router may send a token twice
    if not bool(as_many.all()):
        raise StudfinderError("which tokens reach which expert of this model cannot be told")
    return torch.empty_like(order[at]).index_copy_(0, place, order[at])


def _hashes(rows_XC: torch.Tensor) -> torch.Tensor:
    """A number for each row that equal rows share: exact, whatever the order of summing, as integers wrap around."""
    bits = rows_XC.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[rows_XC.element_size()]).long()
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(1 << 62), 1 << 62, (bits.shape[1],), generator=generator).to(bits.device)
    return (bits * (2 * factors + 1)).sum(dim=1)

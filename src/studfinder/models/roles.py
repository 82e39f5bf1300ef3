"""What the parts of one block do, from one look at it: mixers, feed-forward networks, norms, routers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from studfinder.models.anatomy import Layer, Mixer, Norm
from studfinder.models.dependence import BlockLook
from studfinder.models.feeding import beside, is_routed, refs_of, writers_of
from studfinder.models.mixing import convolutions, mixers_of
from studfinder.models.trace import Call


def parts_of(model: Any, block: Call, level: Call, output: torch.Tensor) -> Layer:
    """The parts of one block.

    Args:
        block: the call, with what ran inside it.
        level: the same where every matrix gave the same for all tokens.
        output: the hidden states that the block handed on, (B,T,C) or with several streams.
    """
    look = BlockLook(model, block, level, output)
    direct = look.written(output)
    embedded = model.get_input_embeddings().weight.shape[-1]
    if not direct and look.width % embedded == 0:  # several streams side by side
        look.width, look.output = embedded, output.unflatten(-1, (-1, embedded))
        direct = look.written(look.output)
    mixing = [product for product in look.products if look.mixes(product)]
    mixers = mixers_of(look, mixing, [product for product in direct if product in mixing])
    inside = tuple(f"{mixer.module}." for mixer in mixers if mixer.module != block.name)
    mixing += [one for one in look.products if one.parameter.startswith(inside) and one not in mixing]
    mixers += convolutions(look, [mixer.module for mixer in mixers])
    writers = writers_of(look, direct, mixing)
    routed = [product for product in writers if is_routed(look, product)]
    experts = max((product.experts or len(beside(look, product.parameter)) for product in routed), default=0)
    routers = _routers(look, experts, mixers) if experts else ()
    around = next((_around(look, product.parameter) for product in routed), None)
    return Layer(block.name, mixers, refs_of(look, writers), _norms(look), routers, _fused(look, routers), around)


def _routers(look: BlockLook, experts: int, mixers: Sequence[Mixer]) -> tuple[str, ...]:
    """Matrices with a row for each expert, or with one; in a recurrence a row may be a head's."""
    apart = tuple(f"{mixer.module}." for mixer in mixers if mixer.kind == "linear")
    asked = [one for one in look.products if not one.parameter.startswith(apart)]
    found = [one.parameter for one in asked if one.rows in (1, experts) and one.rows != look.width]
    return tuple(dict.fromkeys(found))


def _around(look: BlockLook, parameter: str) -> str | None:
    """The innermost module around the experts that all tokens enter and leave as hidden states."""
    size, name = look.tokens * look.width, parameter.rpartition(".")[0]
    while name.startswith(look.call.name):
        given, gave = look.call.modules.get(name, ([], []))
        if given and gave and given[0].numel() == size and gave[0].numel() == size:
            return name
        name = name.rpartition(".")[0]
    return None


def _fused(look: BlockLook, routers: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Modules beside each other that read the same tensor."""
    groups: dict[tuple[str, int, int], dict[str, None]] = {}
    for product in look.products:
        owner, _, leaf = product.parameter.rpartition(".")
        if leaf == "weight" and not product.experts and product.parameter not in routers:
            place = owner.rpartition(".")[0], product.x.data_ptr(), product.x.numel()
            groups.setdefault(place, {})[owner] = None
    found: dict[tuple[str, ...], None] = {}
    for members in groups.values():  # of experts in a list all, whether these tokens reached them or not
        lists = [beside(look, f"{member}.weight") for member in members]
        found |= {tuple(name.rpartition(".")[0] for name in same): None for same in zip(*lists, strict=False)}
    return tuple(members for members in found if len(members) > 1)


def _norms(look: BlockLook) -> tuple[Norm, ...]:
    found = []
    for name, (given, gave) in look.call.modules.items():
        module = look.model.get_submodule(name)
        if given and gave and not list(module.children()) and given[0].shape == gave[0].shape:
            offset = norm_offset(module, given[0].detach())
            if offset is not None:
                found.append(Norm(name, offset))
    return tuple(found)


@torch.no_grad()
def norm_offset(module: nn.Module, x: torch.Tensor) -> float | None:
    """Of a norm: 1 if it multiplies by 1 + weight, else 0. None for any other module.

    A norm's output does not change with the size of its input, and changes with its direction.
    """
    parameters = dict(module.named_parameters(recurse=False))
    if any(parameter.dim() > 1 for parameter in parameters.values()):
        return None
    try:
        drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
        once, louder, turned = module(drawn), module(drawn * 4), module(drawn.flip(-1))
        zeros = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        zero = torch.func.functional_call(module, zeros, (drawn,))
    except (TypeError, ValueError, RuntimeError, AttributeError):  # it takes more than one tensor
        return None
    if not all(isinstance(one, torch.Tensor) and one.shape == x.shape for one in (once, louder, turned)):
        return None
    size = once.abs().max()
    if not size > 0 or (louder - once).abs().max() > 0.02 * size or (turned - once).abs().max() < 0.1 * size:
        return None
    return float(bool(parameters) and bool(zero.abs().max() > 0))

"""Anatomy by probing: the blocks of a live model, and what is in them, are found by looking at what depends on what.

Nothing here knows the name of a part or of a class.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from studfinder.errors import StudfinderError
from studfinder.models.anatomy import Layer
from studfinder.models.roles import parts_of
from studfinder.models.trace import TOKENS, Call, traced


def probed(
    model: nn.Module, vocabulary: int, depths: Mapping[str, int] | None = None
) -> tuple[str, tuple[Layer, ...], torch.Tensor]:
    """The list of blocks of a live model, its layers, and what one hands on. The model is run twice on a few tokens.

    Args:
        depths: how many members the lists of the model that this one is a twin of have; None if it is none.

    Raises:
        StudfinderError: no list of blocks was found.
    """
    with torch.inference_mode(False), torch.enable_grad():
        return _probed(model, vocabulary, depths)


def _probed(
    model: nn.Module, vocabulary: int, depths: Mapping[str, int] | None
) -> tuple[str, tuple[Layer, ...], torch.Tensor]:
    ids_BT = torch.randint(0, vocabulary, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    blocks, outputs = _chain(_run(model, ids_BT), depths)
    level = {call.name: call for call in reversed(_run(model, ids_BT, level=True)) if call.given[0].requires_grad}
    names = {module: name for name, module in model.named_modules()}  # of a shared module the first
    kinds: dict[Any, tuple[str, Layer]] = {}
    layers = []
    for block, output in zip(blocks, outputs, strict=True):
        kind = structure_of(model.get_submodule(block.name))
        if kind not in kinds:
            kinds[kind] = block.name, parts_of(model, block, level[block.name], output)
        layers.append(renamed(kinds[kind][1], partial(_moved, model, names, kinds[kind][0], block.name)))
    return blocks[0].parent, tuple(layers), outputs[0].detach()


def _run(model: Any, ids_BT: torch.Tensor, *, level: bool = False) -> list[Call]:
    device = model.get_input_embeddings().weight.device
    with traced(model, level=level) as calls:
        model(input_ids=ids_BT.to(device), use_cache=False)
    return calls


def _chain(calls: Sequence[Call], depths: Mapping[str, int] | None) -> tuple[list[Call], list[torch.Tensor]]:
    """The longest run of members of one list that hand a tensor on, bit for bit; and what each handed on."""
    best: list[tuple[Call, torch.Tensor]] = []
    by_list: dict[str, list[Call]] = {}
    for call in calls:
        # a block that runs several times may do so without gradients first
        if call.depth == 0 and call.products and any(one.requires_grad for one in call.given):
            by_list.setdefault(call.parent, []).append(call)
    for members in by_list.values():
        run: list[tuple[Call, torch.Tensor]] = []
        for call, after in zip(members, [*members[1:], None], strict=True):
            handed = _handed(call, after)
            if handed is None and run:  # the last one's has the place and shape that the others' had
                handed = next((one for one in call.gave if one.shape == run[-1][1].shape), None)
            if handed is None:
                handed = next((one for one in call.gave if one.dim() >= 3), None)
            if handed is None:
                continue
            run.append((call, handed))
            if _depth(run, depths) > _depth(best, depths):
                best = list(run)
            if _handed(call, after) is None:
                run = []
    if not best:
        raise StudfinderError("this model has no list of blocks that hand hidden states on", expected="a decoder")
    first: dict[str, tuple[Call, torch.Tensor]] = {}
    for call, handed in best:  # blocks that run several times count once
        first.setdefault(call.name, (call, handed))
    return [call for call, _ in first.values()], [handed for _, handed in first.values()]


def _depth(run: Sequence[tuple[Call, torch.Tensor]], depths: Mapping[str, int] | None) -> tuple[int, int]:
    return (depths.get(run[0][0].parent, 0) if depths and run else 0), len(run)


def _handed(call: Call, after: Call | None) -> torch.Tensor | None:
    if after is None:
        return None
    pairs = ((gave, given) for gave in call.gave for given in after.given if gave.dim() >= 3)
    return next((gave for gave, given in pairs if gave.shape == given.shape and torch.equal(gave, given)), None)


def structure_of(block: nn.Module) -> tuple:
    """What blocks of one structure have in common: modules, shapes, settings; of numbers, which may count layers, only
    a 0 or 1 that does not say so by its name: some files write their switches like that."""
    found: list[Any] = []
    for name, module in block.named_modules(remove_duplicate=False):
        shapes = ((leaf, tuple(parameter.shape)) for leaf, parameter in module.named_parameters(recurse=False))
        plain = ((key, value) for key, value in vars(module).items() if not key.startswith("_") and key != "training")
        settings = ((key, value if _is_setting(key, value) else value is None) for key, value in plain)
        found.append((name, type(module), tuple(shapes), tuple(settings)))
    return tuple(found)


def _is_setting(key: str, value: Any) -> bool:
    return isinstance(value, bool | str) or (isinstance(value, int) and value in (0, 1) and not _COUNTS.search(key))


_COUNTS = re.compile("idx|index|layer|_id$")
"""Of the name of a number: which block it is in."""


def spread(
    model: nn.Module, blocks: str, layers: Sequence[Layer], structures: Mapping[str, Hashable]
) -> tuple[Layer, ...]:
    """The layers of a model by those of its twin, which has one of each structure.

    Args:
        structures: of every member of a list of modules, by name, as the twin began.
    """
    names = {module: name for name, module in model.named_modules()}
    kinds = {structures[layer.block]: layer for layer in reversed(layers)}
    found = []
    for child, _ in model.get_submodule(blocks).named_children():
        layer = kinds.get(structures[f"{blocks}.{child}"])
        if layer is not None:
            found.append(renamed(layer, partial(_moved, model, names, layer.block, f"{blocks}.{child}")))
    return tuple(found)


def _moved(model: nn.Module, names: dict[nn.Module, str], old: str, new: str, name: str) -> str:
    """The name of a part in another block of the same structure; a part that blocks share has its first name."""
    if name != old and not name.startswith(f"{old}."):
        return name
    moved = new + name[len(old) :]
    try:
        return names[model.get_submodule(moved)]
    except AttributeError:  # a parameter
        owner, _, leaf = moved.rpartition(".")
        return f"{names.get(model.get_submodule(owner), owner)}.{leaf}"


def renamed(value: Any, rename: Callable[[str], str]) -> Any:
    """A record of anatomy with other names in it."""
    if isinstance(value, str):
        return rename(value)
    if isinstance(value, tuple):
        return tuple(renamed(one, rename) for one in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {one.name: renamed(getattr(value, one.name), rename) for one in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value

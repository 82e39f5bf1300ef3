"""A twin to be probed in a model's place: the same configuration and real widths, one block of each structure, random
weights. For models whose own weights are not numbers that stay in memory: offloaded, quantised, cast as they are used,
not finite."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import nn

from studfinder.models.carried import is_carried

_EXPERTS = 32
"""How many experts of a layer a twin has at most: enough for the groups that routers choose from."""
_WORDS = 1024
"""How many words: embedding and output matrix may be larger than all the rest of a twin."""


def needs_twin(model: nn.Module) -> bool:
    """Whether some weight of a model is offloaded or sharded, is no matrix of floating-point numbers, or is cast each
    time it is used, where a trace would keep every cast."""
    if is_carried(model):
        return True
    for module in model.modules():
        if hasattr(module, "_hf_hook") and getattr(module._hf_hook, "offload", False):
            return True
        own = list(module.parameters(recurse=False))
        if any(one.is_meta or not one.is_floating_point() for one in own):
            return True
        if any(type(one.detach()) is not torch.Tensor for one in own):  # sharded over processes, or of a library
            return True
        if hasattr(module, "in_features") and not isinstance(getattr(module, "weight", None), nn.Parameter):
            return True
    return False


def twin_of(
    model: Any, structure: Callable[[nn.Module], Hashable], *, whole: bool = False, words: int | None = _WORDS
) -> tuple[Any, dict[str, Hashable]]:
    """The twin of a live model, on the CPU in float32, and the structure of every member of its lists of modules.

    Args:
        structure: gives what blocks of one structure have in common.
        whole: with all blocks, not one of each structure.
        words: how large its vocabulary is at most; None for its own.
    """
    with torch.device("cpu"):  # wherever it is called
        return _made(model, structure, whole, words)


def _made(
    model: Any, structure: Callable[[nn.Module], Hashable], whole: bool, words: int | None
) -> tuple[Any, dict[str, Hashable]]:
    config = copy.deepcopy(model.config)
    for part in _parts(config):
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config
        for name, value in vars(part).items():
            if "experts" in name and "per" not in name and isinstance(value, int) and value > _EXPERTS:
                setattr(part, name, _EXPERTS)
        if words is not None and getattr(part, "vocab_size", 0) > words:
            part.vocab_size, part.pad_token_id = words, None
    with torch.device("meta"):
        twin = type(model)._from_config(config, dtype=torch.float32)
    lists = {path: part for path, part in twin.named_modules() if isinstance(part, nn.ModuleList)}
    structures = {f"{path}.{i}": structure(part) for path, parts in lists.items() for i, part in enumerate(parts)}
    for path, members in lists.items():
        if not whole and len(members) > 2:
            _thin(twin, members, [structures[f"{path}.{i}"] for i in range(len(members))])
    _fill(twin)
    return twin.eval(), structures


def _parts(config: Any) -> list[Any]:
    """A config and those inside it."""
    inner = [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    return [config, *(found for one in inner if one is not None for found in _parts(one))]


def _thin(twin: Any, members: nn.ModuleList, structures: Sequence[Hashable]) -> None:
    """Keep the first member of each structure, and a second where all are alike; each keeps its name."""
    kept: dict[Any, list[int]] = {}
    for number, one in enumerate(structures):
        kept.setdefault(one, []).append(number)
    wanted = sorted({numbers[0] for numbers in kept.values()} | ({1} if len(kept) == 1 else set()))
    depth = len(members)
    for part in _parts(twin.config):  # what a config lists by layer is looked up by place
        for name, value in vars(part).items():
            if isinstance(value, list) and len(value) == depth:
                setattr(part, name, [value[number] for number in wanted])
    for number in set(range(depth)) - set(wanted):
        del members._modules[str(number)]


def _fill(twin: Any) -> None:
    """Numbers in memory for every tensor: small ones as the class starts them, large ones by repeating some."""
    twin.to_empty(device="cpu")
    drawn = torch.randn(_DRAWN, generator=torch.Generator().manual_seed(0)) * 0.05
    for parameter in twin.parameters():
        if parameter.dim() > 1 and parameter.numel() > _DRAWN:
            for part in parameter.detach().view(-1).split(_DRAWN):
                part.copy_(drawn[: len(part)])
            parameter._is_hf_initialized = True  # so that transformers leaves it alone
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(0)
        twin.init_weights()
    finally:
        torch.random.set_rng_state(state)
    for parameter in twin.parameters():
        if parameter.dim() > 1 and parameter.numel() <= _DRAWN:
            values = parameter.detach()
            if not bool(values.isfinite().all() and values.std() > 0):
                values.copy_(drawn[: values.numel()].view_as(values))  # it was left as it was, or starts at zero
    twin.tie_weights()


_DRAWN = (1 << 20) - 3
"""How many numbers are drawn: no width of a matrix divides it, so that no two rows are alike."""

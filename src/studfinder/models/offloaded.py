"""Weights that accelerate keeps elsewhere between two uses, brought to where they compute."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from studfinder.models.carried import computes_on
from studfinder.models.paging import mapped_places
from studfinder.patches import Journal

Brought = Mapping[tuple[nn.Module, str], torch.Tensor]
"""By module and name within it."""


def offloading(part: nn.Module) -> Any | None:
    """The hook of accelerate that brings a module's own weights in for each use of it, if it has one."""
    hook = getattr(part, "_hf_hook", None)
    hooks = getattr(hook, "hooks", (hook,))  # several in a row are one
    return next((one for one in hooks if getattr(one, "offload", False) and getattr(one, "weights_map", None)), None)


def brought(module: nn.Module, but: Container[nn.Module] = ()) -> Brought:
    """The weights of a module that are kept elsewhere, where they compute: views of their files where that is a CPU.

    Args:
        but: parts of it that stay as they are.
    """
    found, device = {}, computes_on(module)
    for part in module.modules():
        hook = offloading(part)
        for name, one in part.named_parameters(recurse=False) if part not in but else ():
            if hook is not None and one.is_meta:
                found[part, name] = hook.weights_map[name].to(_device(hook))
            elif device is not None and one.device != device:
                found[part, name] = one.detach().to(device)
    return found


def _device(hook: Any) -> torch.device:
    return torch.device("cpu" if hook.execution_device is None else hook.execution_device)


def offloaded_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a model's state that are offloaded, by name, where they are kept."""
    found = {}
    for path, part in model.named_modules():
        hook = offloading(part)
        tensors = (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)) if hook else ()
        for name, one in tensors:
            if one.is_meta and name in hook.weights_map:  # type: ignore[union-attr]
                found[f"{path}.{name}".lstrip(".")] = hook.weights_map[name]  # type: ignore[union-attr]
    return found


@contextmanager
def in_place(model: nn.Module, weights: Brought) -> Iterator[None]:
    """Brought weights stand in their modules while the context lasts, and can be edited there. Those that are tied are
    one again."""
    with Journal(model) as journal:
        put(model, weights, journal)
        yield


def put(model: nn.Module, weights: Brought, journal: Journal | None) -> None:
    """Put brought weights into their modules, for good if there is no journal."""
    journal = journal or Journal()
    tied = _tied_places(model)
    done: set[tuple[nn.Module, str]] = set()
    for place, value in weights.items():
        if place not in done:
            parameter = nn.Parameter(value, requires_grad=value.is_floating_point())
            for part, name in tied.get(place, (place,)):
                journal.set(part, name, parameter)
            done.update(tied.get(place, ()))
    for hook in dict.fromkeys(offloading(part) for part, _ in weights):
        if hook is not None:
            journal.put(vars(hook), "offload", False)


def settle(model: nn.Module) -> None:
    """Give a model that was just loaded its offloaded weights for good where they compute on a CPU and are kept as they
    compute: there they are mapped from their files, and take no memory."""
    hooks = {part: offloading(part) for part in model.modules()}
    weights = brought(model, but={part for part, hook in hooks.items() if hook is None or _device(hook).type != "cpu"})
    if weights and len(mapped_places(weights.values())) == len(weights):
        put(model, weights, None)


def tied_to(model: nn.Module, name: str) -> list[str]:
    """All names of a parameter, itself among them; also where offloading has made several of one."""
    own, ties = model.get_parameter(name), getattr(model, "all_tied_weights_keys", {})
    source = ties.get(name, name)
    found = [other for other, one in model.named_parameters(remove_duplicate=False) if one is own]
    apart = [source, *(other for other, of in ties.items() if of == source)] if own.is_meta else []
    return list(dict.fromkeys([*found, *apart]))


def _tied_places(model: nn.Module) -> dict[tuple[nn.Module, str], list[tuple[nn.Module, str]]]:
    """By the place of each parameter that is tied, all places of it."""

    def place(name: str) -> tuple[nn.Module, str]:
        path, _, leaf = name.rpartition(".")
        return model.get_submodule(path), leaf

    groups: dict[str, list[tuple[nn.Module, str]]] = {}
    for name, own in getattr(model, "all_tied_weights_keys", {}).items():
        groups.setdefault(own, [place(own)]).append(place(name))
    return {one: list(dict.fromkeys(group)) for group in groups.values() for one in group}

"""Which matrices of a model are quantised, and which of them a serving engine fuses into one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from studfinder.errors import StudfinderError
from studfinder.models import LM, MatrixRef

_FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("in_proj_qkvz", "in_proj_ba"),
)
"""Siblings that vLLM and others run as one matrix: they share a scheme, and are skipped together."""

_ROUTERS = ("gate", "router", "shared_expert_gate")
"""Small matrices that choose experts; every quantiser leaves them alone."""


@dataclass(frozen=True)
class Target:
    """One matrix to quantise.

    Attributes:
        ref: where it is; `ref.view` gives it as (out, in).
        layer: its block.
        fused: a name shared by the matrices that are fused when served: decisions are taken for all of them.
        linear: whether the module is torch's Linear itself, and not one that uses its weight in a way of its own.
    """

    ref: MatrixRef
    layer: int
    fused: str
    linear: bool = True

    @property
    def name(self) -> str:
        """The Hugging Face parameter's name."""
        return self.ref.parameter

    def weight(self, lm: LM) -> torch.Tensor:
        """The live matrix as (out, in), a view of the parameter."""
        return self.ref.view(lm.model.get_parameter(self.name)).detach()


def targets(lm: LM, *, offloaded: bool = False) -> tuple[Target, ...]:
    """Every Linear or Conv1D inside the blocks, in order; embeddings, the head and routers are left alone.

    Args:
        offloaded: whether matrices without numbers in memory count too.

    Raises:
        StudfinderError: experts fused into 3-D parameters, weights that are quantised already, or offloaded ones.
    """
    return tuple(target for layer in range(len(lm.anatomy.layers)) for target in _in_block(lm, layer, offloaded))


def _in_block(lm: LM, layer: int, offloaded: bool) -> Iterator[Target]:
    path = lm.anatomy.layers[layer].block
    for name, module in lm.model.get_submodule(path).named_modules(prefix=path):
        _refuse(lm, name, module, offloaded)
        leaf = name.rpartition(".")[2]
        ref = matrix_of(name, module)
        if ref is not None and leaf not in _ROUTERS:
            yield Target(ref, layer, fused_name(name), type(module) is nn.Linear)


def matrix_of(name: str, module: nn.Module) -> MatrixRef | None:
    """Where the matrix of a Linear or a Conv1D is; None for any other module."""
    transposed = type(module).__name__ == "Conv1D"
    return MatrixRef(f"{name}.weight", None, transposed) if transposed or isinstance(module, nn.Linear) else None


def by_fused(found: Iterable[Target]) -> dict[str, list[Target]]:
    """Matrices by the name that they share with those that they are fused with."""
    groups: dict[str, list[Target]] = {}
    for target in found:
        groups.setdefault(target.fused, []).append(target)
    return groups


def fused_name(module: str) -> str:
    """The name that a module shares with those it is fused with when served."""
    parent, _, leaf = module.rpartition(".")
    for siblings in _FUSED:
        if leaf in siblings:
            return f"{parent}.{'+'.join(siblings)}"
    return module


def other_matrices(models: Iterable[nn.Module], chosen: Collection[str]) -> list[str]:
    """Modules that hold a matrix and are not quantised: every Linear that is not chosen, in whichever class of the
    model it appears, and routers and the like, which engines build as a Linear of their own.

    Args:
        models: the classes that the checkpoint is loaded as; their names for a module may differ.
        chosen: names of the modules that are quantised.
    """
    found: dict[str, None] = {}
    quantised = set(chosen)
    for model in models:
        modules = list(model.named_modules(remove_duplicate=False))  # a module may be used twice
        same = {id(module) for name, module in modules if name in quantised}
        for name, module in modules:
            if id(module) not in same and _matrix(module):
                found[name] = None
    return list(found)


def _matrix(module: nn.Module) -> bool:
    if isinstance(module, nn.Embedding):
        return False
    weight = getattr(module, "weight", None)
    return isinstance(module, nn.Linear) or (isinstance(weight, torch.Tensor) and weight.dim() == 2)


def _refuse(lm: LM, name: str, module: nn.Module, offloaded: bool) -> None:
    for leaf, parameter in module.named_parameters(recurse=False):
        if parameter.dim() == 3 and not isinstance(module, nn.Conv1d | nn.Conv2d):
            raise StudfinderError(
                f"{name}.{leaf} of {lm.source.id} holds all experts in one parameter",
                expected="a model whose matrices are Linear or Conv1D modules",
                do="Mixtures with fused experts cannot be quantised by studfinder yet",
            )
        if parameter.dim() == 2 and parameter.device.type == "meta" and not offloaded:
            raise StudfinderError(f"{name}.{leaf} is offloaded", do="Load the model without offloading to disk")
    quantised = isinstance(module, nn.Linear) and not module.weight.is_floating_point()
    if quantised or hasattr(module, "qweight") or hasattr(module, "weight_packed"):
        raise StudfinderError(f"{name} of {lm.source.id} is quantised already", do="Start from the full model")

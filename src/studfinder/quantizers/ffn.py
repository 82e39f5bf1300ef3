"""Where the matrices of a block's feed-forward network are: what reads each neuron, and what writes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.quantizers.bench import Workbench

_INNER = {"down_proj": ("gate_proj", "up_proj"), "w2": ("w1", "w3")}
"""By the name of the down projection: what enters the activation, and what multiplies it."""


@dataclass(frozen=True)
class FFN:
    """A gated feed-forward network, down(act(gate(x)) * up(x)), by parameter names.

    Attributes:
        down: (hidden, neurons).
        up: the parameter whose rows from `up_first` on are what multiplies, (neurons, hidden).
        gate: the same for what goes through the activation. In phi3 both are one parameter.
    """

    down: str
    up: str
    up_first: int
    gate: str
    gate_first: int


def find_ffn(lm: LM, layer: int) -> FFN | None:
    """The feed-forward network of a block; None if it is not gated (what lies before the activation cannot be scaled),
    or a mixture."""
    writers = lm.anatomy.layers[layer].writers
    if len(writers) == 1 and writers[0].expert is None and not writers[0].transposed:
        parent, _, leaf = writers[0].module.rpartition(".")
        block = lm.model.get_submodule(parent)
        down = writers[0].parameter
        if leaf in _INNER and all(isinstance(getattr(block, name, None), nn.Linear) for name in _INNER[leaf]):
            gate, up = (f"{parent}.{name}.weight" for name in _INNER[leaf])
            return FFN(down, up, 0, gate, 0)
        if isinstance(getattr(block, "gate_up_proj", None), nn.Linear):
            both = f"{parent}.gate_up_proj.weight"
            return FFN(down, both, lm.model.get_parameter(down).shape[1], both, 0)
    return None


def ffn_of(lm: LM, layer: int) -> FFN:
    """The same. Raises StudfinderError if there is none."""
    found = find_ffn(lm, layer)
    if found is not None:
        return found
    raise StudfinderError(
        f"layer {layer} of this {lm.anatomy.architecture} model has no gated feed-forward network of its own",
        expected="down(act(gate(x)) * up(x))",
    )


def scale_rows(bench: Workbench, name: str, rows: list[int], factors: torch.Tensor) -> None:
    """Multiply rows of a matrix (out, in), and of its bias, by powers of two.

    Raises:
        StudfinderError: a number under- or overflows, so that the factor could not be taken back.
    """
    for parameter, value in with_bias(bench.lm, name).items():
        column = factors.to(value).reshape(-1, *[1] * (value.dim() - 1))
        bench.journal.write(parameter, _scaled(value, rows, column, 0, parameter))


def scale_columns(bench: Workbench, name: str, cols: list[int], factors: torch.Tensor) -> None:
    """Multiply columns of a matrix (out, in) by powers of two. Raises as `scale_rows`."""
    value = bench.lm.model.get_parameter(name).detach()
    bench.journal.write(name, _scaled(value, cols, factors.to(value)[None, :], 1, name))


def with_bias(lm: LM, name: str) -> dict[str, torch.Tensor]:
    """A weight by its parameter's name, and its bias if it has one."""
    module = name.rpartition(".")[0]
    found = lm.model.get_submodule(module).named_parameters(recurse=False, remove_duplicate=False)
    return {f"{module}.{leaf}": value.detach() for leaf, value in found if leaf in ("weight", "bias")}


def _scaled(value: torch.Tensor, places: list[int], factors: torch.Tensor, axis: int, name: str) -> torch.Tensor:
    old = value.index_select(axis, torch.tensor(places, device=value.device))
    new = old * factors
    if not torch.equal(new / factors, old) or not torch.isfinite(new).all():
        raise StudfinderError(f"{name} cannot be scaled exactly in {value.dtype}", do="Use a smaller factor")
    return value.clone().index_copy_(axis, torch.tensor(places, device=value.device), new)

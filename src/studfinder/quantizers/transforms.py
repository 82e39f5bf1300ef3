"""Exact changes before quantising: the model computes the same, and its matrices are easier (or harder) to round.

Factors are powers of two, which change no mantissa: logits stay bit-equal. A permutation and a split change only the
order of a sum; a rotation is exact up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from studfinder.edits import meant
from studfinder.errors import StudfinderError
from studfinder.models import LM, Writer, check_same_weights
from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.ffn import ffn_of, rows_of, scale_columns, scale_rows, with_bias


class Transform(Protocol):
    """A change that leaves the model what it computes and makes it easier to quantise.

    With a `model` (a content hash) it is refused on another one; with `calibrated` it needs calibration windows.
    """

    def apply(self, bench: Workbench) -> None:
        """Change the model on the bench, and what is held out along with it."""
        ...


def transforms_of(lm: LM, given: Any) -> tuple[Transform, ...]:
    """What was given as transforms, in order. Raises StudfinderError for what is none, or is of another model."""
    if given is None:
        return ()
    if isinstance(given, list | tuple):
        return tuple(one for part in given for one in transforms_of(lm, part))
    if not hasattr(given, "apply"):
        raise StudfinderError(f"a {type(given).__name__} is no transform", expected="Rebalance, Rotate or the like")
    if getattr(given, "model", ""):
        check_same_weights(lm, given.model, "of a model")
    return (given,)


@dataclass(frozen=True, kw_only=True)
class Rebalance:
    """Column `col` of the down projection times 2^power, row `col` of the up projection times 2^-power.

    Attributes:
        neurons: (layer, col) each.
        power: above 0 the written weight grows and the neuron shrinks; below 0 the other way, and then the rounding
            error of the whole column is multiplied by a grown spike.
        model: content hash of the model that the neurons were found in; another one is refused. "" is any.
    """

    neurons: tuple[tuple[int, int], ...]
    power: int
    model: str = field(default="", repr=False)

    def apply(self, bench: Workbench) -> None:
        for layer, cols in _by_layer(self.neurons).items():
            down, up, _ = ffn_of(bench.lm, layer)
            _check_neurons(bench, down, layer, cols)
            factors, neurons = torch.full((len(cols),), 2.0**self.power), torch.tensor(cols)
            scale_columns(bench, down.parameter, neurons, factors)
            scale_rows(bench, up.ref.parameter, rows_of(up, neurons), 1 / factors)
        bench.notes.append(f"{len(self.neurons)} neurons rebalanced by 2^{self.power} (exact)")


@dataclass(frozen=True, kw_only=True)
class Permute:
    """Sort the neurons of each feed-forward network by the largest weight they write, so that groups along the input
    of the down projection hold columns of like size. Free, and exact but for the order of a sum.

    Attributes:
        layers: whose neurons; None for all layers.
    """

    layers: tuple[int, ...] | None = None

    def apply(self, bench: Workbench) -> None:
        lm = bench.lm
        for layer in range(len(lm.anatomy.layers)) if self.layers is None else self.layers:
            writer, *inner = ffn_of(lm, layer)
            down = lm.model.get_parameter(writer.parameter).detach()
            order = by_size(down)
            bench.journal.write(writer.parameter, down[:, order])
            if writer.parameter in bench.held:
                bench.held = {**bench.held, writer.parameter: bench.held[writer.parameter][:, order]}
            moved: dict[str, torch.Tensor] = {}  # which row comes where; gate and up may be one matrix
            for part in inner:
                name = part.ref.parameter
                rows = moved.setdefault(name, torch.arange(lm.model.get_parameter(name).shape[0]))
                rows[rows_of(part, torch.arange(len(order)))] = rows_of(part, order.cpu())
            for name, rows in moved.items():
                for parameter, value in with_bias(lm, name).items():
                    bench.journal.write(parameter, value[rows.to(value.device)])
                if name in bench.held:
                    bench.held = {**bench.held, name: bench.held[name][rows]}
        bench.notes.append("neurons sorted by the largest weight they write (exact but for the order of a sum)")


@dataclass(frozen=True, kw_only=True)
class Split:
    """Copy neurons and let each copy write an equal share, so that an outlying weight is 1/times of what it was.

    Feed-forward networks of all layers grow alike, to a multiple of `multiple`, with neurons that are zero.
    After outlier channel splitting (Zhao et al. 2019, arXiv 1901.09504).

    Attributes:
        neurons: (layer, col) each.
        times: copies of each, a power of two, so that shares are exact.
        multiple: the new width is a multiple of this; the group size, as a rule.
    """

    neurons: tuple[tuple[int, int], ...]
    times: int = 2
    multiple: int = 64

    def __post_init__(self) -> None:
        if self.times < 2 or self.times & (self.times - 1):
            raise StudfinderError(f"split into {self.times}", expected="a power of two: 2, 4, 8, ...")

    def apply(self, bench: Workbench) -> None:
        by_layer = _by_layer(self.neurons)
        config = bench.lm.model.config.get_text_config(decoder=True)
        width = bench.lm.anatomy.intermediate
        copies = (self.times - 1) * max(map(len, by_layer.values()))
        wider = -(-(width + copies) // self.multiple) * self.multiple
        for layer in range(len(bench.lm.anatomy.layers)):
            down, up, gate = ffn_of(bench.lm, layer)
            if up.ref == gate.ref:
                raise StudfinderError("gate and up are one parameter here", expected="matrices of their own to split")
            cols = by_layer.get(layer, [])
            _check_neurons(bench, down, layer, cols)
            self._widen(bench, down.parameter, (gate.ref.parameter, up.ref.parameter), cols, wider - width)
        bench.journal.set(config, "intermediate_size", wider)
        bench.notes.append(
            f"{len(self.neurons)} neurons split in {self.times}; networks widened from {width} to {wider} neurons"
        )

    def _widen(self, bench: Workbench, written: str, inner: tuple[str, str], cols: list[int], added: int) -> None:
        lm, copies = bench.lm, cols * (self.times - 1)
        down = lm.model.get_parameter(written).detach().clone()
        down[:, cols] = down[:, cols] / self.times
        new = torch.cat([down, down[:, copies], down.new_zeros(down.shape[0], added - len(copies))], dim=1)
        _replace(bench, written, new, "in_features")
        _widen_mask(bench, written, added, dim=1)
        for name in inner:
            for parameter, value in with_bias(lm, name).items():
                zeros = value.new_zeros(added - len(copies), *value.shape[1:])
                _replace(bench, parameter, torch.cat([value, value[copies], zeros]), "out_features")
            _widen_mask(bench, name, added, dim=0)


def by_size(down_RC: torch.Tensor) -> torch.Tensor:
    """Neurons in order of the largest weight they write."""
    return down_RC.abs().amax(dim=0).argsort(descending=True, stable=True)


def neurons_of(findings: Any) -> tuple[tuple[int, int], ...]:
    """(layer, col) of super weights: of findings (the proven ones), a Selection, or a list.

    Raises:
        StudfinderError: there are none.
    """
    return tuple(sorted({(weight.layer, weight.col) for weight in meant(findings)}))


def _by_layer(neurons: tuple[tuple[int, int], ...]) -> dict[int, list[int]]:
    if not neurons:
        raise StudfinderError("there are no neurons", expected="at least one (layer, col)")
    found: dict[int, list[int]] = {}
    for layer, col in sorted(set(neurons)):
        found.setdefault(layer, []).append(col)
    return found


def _check_neurons(bench: Workbench, down: Writer, layer: int, cols: list[int]) -> None:
    width = bench.lm.model.get_parameter(down.parameter).shape[1]
    for col in cols:
        if not 0 <= col < width:
            raise StudfinderError(f"layer {layer} has no neuron {col}", expected=f"0 to {width - 1}")


def _replace(bench: Workbench, name: str, value: torch.Tensor, size: str) -> None:
    bench.journal.replace(name, value)
    owner = bench.lm.model.get_submodule(name.rpartition(".")[0])
    bench.journal.set(owner, size, value.shape[1] if size == "in_features" else value.shape[0])


def _widen_mask(bench: Workbench, name: str, added: int, dim: int) -> None:
    if name in bench.held:
        mask = bench.held[name]
        shape = list(mask.shape)
        shape[dim] = added
        bench.held = {**bench.held, name: torch.cat([mask, mask.new_zeros(shape)], dim=dim)}

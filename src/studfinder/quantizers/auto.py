"""Auto: for each fused group, the cheapest means that keeps its measured error below a budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from studfinder.errors import StudfinderError
from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.ffn import find_ffn
from studfinder.quantizers.grid import largest, quantize_weight
from studfinder.quantizers.targets import Target, by_fused
from studfinder.quantizers.transforms import Permute, Rebalance, by_size
from studfinder.quantizers.walk import output_error, second_moments, walk
from studfinder.records.config import Config, option

_POWERS = (1, 2, 3, -1, -2, -3)
_FEW = 8
"""Neurons of a matrix that are rebalanced at most: super weights, not the largest half percent."""


@dataclass(frozen=True)
class _Way:
    """One way to store a fused group.

    Attributes:
        label: in words.
        weights, moments: by parameter name, as an exact change would make them.
        masks: what is held out.
        change: that change; None for none.
    """

    label: str
    weights: dict[str, torch.Tensor]
    moments: dict[str, torch.Tensor]
    masks: dict[str, torch.Tensor]
    change: Permute | Rebalance | None = None


def as_it_is(bench: Workbench, group: list[Target], moments: dict[str, torch.Tensor]) -> _Way:
    """Nothing changed and nothing held out."""
    weights = {target.name: target.weight(bench.lm).float() for target in group}
    none = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    # An expert that no token reached: every input counts alike.
    seen = {name: moments[name] if name in moments else torch.eye(weight.shape[1]) for name, weight in weights.items()}
    return _Way("as it is", weights, seen, none)


@dataclass(frozen=True, kw_only=True)
class Auto(Config):
    """Decide for each fused group, on calibration text: as it is; for a down projection, an exact change that costs
    nothing (neurons sorted, or those of kept weights rebalanced); hold out what is asked to be kept; hold out a share
    besides (the largest weights, or the columns that meet the largest inputs); or skip it. The cheapest in bits whose
    error is within the budget is taken.

    The error is that of the output, relative to the output's own size: sum |dW x|^2 / sum |W x|^2 over the group's
    matrices, rounded to nearest in the method's scheme, with everything before it unquantised. A method that rounds
    better than to nearest will lose less. A format without a place for single numbers has only the choice to skip.

    Attributes:
        budget: the largest relative error of a group.
        fractions: shares to try to hold out.
    """

    calibrated: ClassVar[bool] = True

    budget: float = option(0.02, above=0)
    fractions: tuple[float, ...] = option((0.001, 0.002, 0.005, 0.01), above=0, below=1)

    def __str__(self) -> str:
        return f"what of this is needed, chosen for each fused group: error within {self.budget:g} of the output"

    def apply(self, bench: Workbench) -> None:
        chosen: dict[str, int] = {}
        skipped = []
        changes: list[Permute | Rebalance] = []
        for block in walk(bench):
            moments = second_moments(block)
            for fused, group in by_fused(block.targets).items():
                way = self._way(bench, group, moments)
                label = "skipped" if way is None else way.label
                chosen[label] = chosen.get(label, 0) + 1
                for target in group:
                    bench.held.pop(target.name, None)
                    if way is not None and way.masks[target.name].any():
                        bench.held[target.name] = way.masks[target.name]
                if way is None:
                    skipped.append(fused)
                elif way.change is not None:
                    changes.append(way.change)
        if len({target.fused for target in bench.targets}) == len(skipped):
            raise StudfinderError(
                f"no group keeps its error within {self.budget}", do="Choose a larger budget, or more bits"
            )
        bench.skip(skipped)
        for change in _together(changes):
            change.apply(bench)
        counts = ", ".join(f"{label}: {count}" for label, count in chosen.items())
        bench.notes.append(f"chosen to keep the error of each fused group within {self.budget:g}: {counts}")

    def _way(self, bench: Workbench, group: list[Target], moments: dict[str, torch.Tensor]) -> _Way | None:
        """What is cheapest within the budget; None to skip the group."""
        plain = as_it_is(bench, group, moments)
        size = sum(output_error(weight, plain.moments[name]) for name, weight in plain.weights.items())
        for way in self._ways(bench, group, plain):
            error = 0.0
            for name, w in way.weights.items():
                held_RC = way.masks[name] if way.masks[name].any() else None
                made = quantize_weight(w, bench.scheme, held_RC=held_RC)
                error += output_error(made.dequantized() - w, way.moments[name])
            if error <= self.budget * size:
                return way
        return None

    def _ways(self, bench: Workbench, group: list[Target], plain: _Way) -> Iterator[_Way]:
        """The cheapest in bits first, `plain` before all."""
        asked = {name: bench.held.get(name, none) for name, none in plain.masks.items()}
        yield plain
        if len(group) == 1:
            yield from _changed(bench, group[0], plain, asked)
        if bench.numbers:
            if any(mask.any() for mask in asked.values()):
                yield replace(plain, label="held out as asked", masks=asked)
            held = self._held(plain, asked)
            yield from sorted(held, key=lambda way: sum(int(mask.sum()) for mask in way.masks.values()))

    def _held(self, plain: _Way, asked: dict[str, torch.Tensor]) -> Iterator[_Way]:
        for fraction in self.fractions:
            share, columns = {}, {}
            for name, w in plain.weights.items():
                share[name] = asked[name] | largest(w, max(1, int(fraction * w.numel())))
                columns[name] = asked[name] | _loudest(w, plain.moments[name], fraction)
            yield replace(plain, label=f"{fraction:.1%} held out", masks=share)
            yield replace(plain, label=f"{fraction:.1%} held out, by columns", masks=columns)


def _changed(bench: Workbench, target: Target, plain: _Way, asked: dict[str, torch.Tensor]) -> Iterator[_Way]:
    """A down projection with the columns of its neurons sorted, or with those of kept weights rebalanced: the neurons'
    own rows, in the matrix before, are rounded as before (a power of two changes no code)."""
    ffn = find_ffn(bench.lm, target.layer)
    if ffn is None or ffn.parameter != target.name:
        return
    name, down_RC, moment_CC = target.name, plain.weights[target.name], plain.moments[target.name]
    order = by_size(down_RC)
    sorted_moment_CC = moment_CC[order][:, order]
    label = "neurons sorted"
    yield _Way(label, {name: down_RC[:, order]}, {name: sorted_moment_CC}, plain.masks, Permute(layers=(target.layer,)))
    cols = asked[name].any(dim=0).nonzero()[:, 0].tolist()
    if not 0 < len(cols) <= _FEW or bench.scheme.block == "tensor":
        return
    for power in _POWERS:
        factor_C = torch.ones(down_RC.shape[1])
        factor_C[cols] = 2.0**power
        scaled_CC = moment_CC / factor_C / factor_C[:, None]
        change = Rebalance(neurons=tuple((target.layer, col) for col in cols), power=power)
        yield _Way(f"rebalanced by 2^{power}", {name: down_RC * factor_C}, {name: scaled_CC}, plain.masks, change)


def _together(changes: list[Permute | Rebalance]) -> Iterator[Permute | Rebalance]:
    """One change of each kind; those of sorted neurons last, since the others name neurons by number."""
    powers = {change.power for change in changes if isinstance(change, Rebalance)}
    for power in sorted(powers):
        own = [change for change in changes if isinstance(change, Rebalance) and change.power == power]
        yield Rebalance(neurons=tuple(neuron for change in own for neuron in change.neurons), power=power)
    layers = tuple(layer for change in changes if isinstance(change, Permute) for layer in change.layers or ())
    if layers:
        yield Permute(layers=layers)


def _loudest(weight_RC: torch.Tensor, moment_CC: torch.Tensor, fraction: float) -> torch.Tensor:
    """The columns that meet the largest inputs, at least one: their rounding errors are multiplied most."""
    mask = torch.zeros_like(weight_RC, dtype=torch.bool)
    mask[:, moment_CC.diagonal().topk(max(1, int(fraction * weight_RC.shape[1]))).indices] = True
    return mask

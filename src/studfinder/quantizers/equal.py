"""Equivalent forms of a model: what may be changed so that it computes the same and rounds better."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from studfinder.models import LM
from studfinder.passes import Stream
from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.ffn import find_ffn
from studfinder.quantizers.grid import quantize_weight
from studfinder.quantizers.importance import importance_sums
from studfinder.quantizers.key_bias import key_places, move_value_bias, take_bias
from studfinder.quantizers.scheme import Scheme
from studfinder.quantizers.targets import targets
from studfinder.quantizers.transforms import Rebalance
from studfinder.records import EqualChange

POWERS = range(1, 9)
"""By which powers of two a column is tried."""


def columns(
    lm: LM, neurons: Sequence[tuple[int, int]], windows: Sequence[Sequence[int]], scheme: Scheme
) -> tuple[list[EqualChange], list[str]]:
    """For the columns of down projections that meet a spike, the power of two that rounds best, and what was left.

    What is compared is the error of the matrix's output when it is rounded to nearest, inputs taken for uncorrelated:
    sum d_rc^2 E[x_c^2]. A column that grows pulls its blocks' steps up, and its own input down by as much; the rows
    that make the neuron shrink by the same power of two, which changes no code of theirs.

    Args:
        neurons: (layer, column) each.
        windows: token ids, on which inputs are measured.
        scheme: that the power is chosen for.
    """
    networks = {layer: find_ffn(lm, layer) for layer in dict.fromkeys(layer for layer, _ in neurons)}
    notes = [
        f"columns of layer {layer}: no gated feed-forward network of its own (a mixture, or another shape)"
        for layer, found in networks.items()
        if found is None
    ]
    names = {found.parameter for found in networks.values() if found is not None}
    found = tuple(target for target in targets(lm) if target.name in names)
    sums = importance_sums(lm, found, windows, apart=False) if found else {}
    changes = []
    for target in found:
        sum_C, count = sums[target.name]
        moment_C = (sum_C / max(count, 1)).float().to(lm.device)
        weight_RC = target.weight(lm).detach().float()
        for column in sorted(col for layer, col in neurons if layer == target.layer):
            changed = {power: _with_column(weight_RC, moment_C, column, power) for power in (0, *POWERS)}
            errors = {power: rounding_cost(*both, scheme) for power, both in changed.items()}
            power = min(errors, key=lambda one: errors[one])
            if not power:
                notes.append(f"column {column} of layer {target.layer}: no power of two rounds better")
                continue
            weight_RC, moment_C = changed[power]
            words = (
                f"layer {target.layer}: column {column} of the down projection times {2**power}, its input divided by "
                f"that; the matrix's rounding error falls to {errors[power] / errors[0]:.0%}"
            )
            changes.append(
                EqualChange(
                    kind="column",
                    layer=target.layer,
                    parameter=target.name,
                    words=words,
                    exact=True,
                    column=column,
                    power=power,
                )
            )
    return changes, notes


def _with_column(
    weight_RC: torch.Tensor, moment_C: torch.Tensor, column: int, power: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix and the mean squares of its inputs with a column times 2^power, and its input divided by that."""
    weight_RC, moment_C = weight_RC.clone(), moment_C.clone()
    weight_RC[:, column] *= 2.0**power
    moment_C[column] /= 4.0**power
    return weight_RC, moment_C


def rounding_cost(weight_RC: torch.Tensor, moment_C: torch.Tensor, scheme: Scheme) -> float:
    """sum d_rc^2 E[x_c^2] of a matrix rounded to nearest."""
    error_RC = quantize_weight(weight_RC, scheme).dequantized() - weight_RC
    return float((error_RC.square() * moment_C).sum(dtype=torch.float64))


@contextmanager
def equalized(lm: LM, changes: Sequence[EqualChange]) -> Iterator[Workbench]:
    """The live model with changes made, on a bench whose journal undoes them at the end."""
    bench = Workbench(lm, ())
    with bench.journal:
        for change in changes:
            _apply(bench, change)
        yield bench


def _apply(bench: Workbench, change: EqualChange) -> None:
    if change.kind == "column":
        assert change.column is not None
        assert change.power is not None
        Rebalance(neurons=((change.layer, change.column),), power=change.power).apply(bench)
    elif change.kind == "key bias":
        take_bias(bench, change.parameter, key_places(bench.lm, change))
    else:
        move_value_bias(bench, change.layer)


def equal_parameters(lm: LM, changes: Sequence[EqualChange]) -> dict[str, torch.Tensor]:
    """The parameters that the changes change, by name, as they leave them; the model is as before."""
    with equalized(lm, changes) as bench:
        return {name: lm.model.get_parameter(name).detach().clone() for name in bench.journal.written}


def on_top(under: Stream, over: Stream) -> Stream:
    """A stream with another change in force before its own is made, so that it works on what that has made."""

    @contextmanager
    def enter(layer: int) -> Iterator[None]:
        with under.at(layer), over.at(layer):
            yield

    touched: Mapping[int, tuple[str, ...] | None] = {under.first: under.touches, over.first: over.touches}
    first = min(under.first, over.first)
    touches = touched[first]
    if under.first == over.first:
        touches = None if None in (under.touches, over.touches) else (*(under.touches or ()), *(over.touches or ()))
    return replace(over, enter=enter, first=first, last=max(under.last, over.last), touches=touches)

"""The feed-forward networks of a block: which matrices write to the stream, and which rows make what they read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import nn

from studfinder.models.anatomy import Rows, Writer
from studfinder.models.dependence import BlockLook, loudest, ref_of
from studfinder.models.trace import Product

_NARROW = 8
"""A matrix narrower than the hidden size by this factor is a side path, not a feed-forward network's output."""


def writers_of(look: BlockLook, direct: Sequence[Product], mixing: Sequence[Product]) -> list[Product]:
    """The products that write what feed-forward networks give.

    Args:
        direct: the products that write to the stream.
        mixing: those that belong to mixers.
    """
    found = [product for product in direct if product not in mixing]
    if not found:  # what a network gives may go through another matrix first, to a recurrence
        found = [product for product in _written_inside(look) if product not in mixing]
        found = [one for one in found if not any(feeds in found for feeds in look.written(one.x))]
    found = [product for product in found if product.width * _NARROW > look.width]
    # What others are multiplied with on their way bends the stream; the others do not, but where a norm bends all.
    bent = [look.bends(look.output[..., 0], product, 0)[0] for product in found]
    if not all(bent):
        found = [product for product, is_bent in zip(found, bent, strict=True) if not is_bent]
    latent = [inner for one in found if not one.experts for inner in look.written(one.x) if inner.experts]
    return found + latent  # experts may write to a latent that one matrix maps to the stream


def _written_inside(look: BlockLook) -> list[Product]:
    """What writes to the output of any module inside that is as wide as the stream, but for the matrices' own."""
    found: dict[Product, None] = {}
    for name, (_, gave) in look.call.modules.items():
        if gave and gave[0].dim() >= 2 and gave[0].shape[-1] == look.width:
            found |= {one: None for one in look.written(gave[0]) if one.parameter.rpartition(".")[0] != name}
    return list(found)


def is_routed(look: BlockLook, product: Product) -> bool:
    """Whether only some tokens reach a matrix."""
    return bool(product.experts) or bool(product.x.shape[:-1].numel() % look.tokens)


def refs_of(look: BlockLook, writers: Sequence[Product]) -> tuple[Writer, ...]:
    """Every matrix that writes: of experts all, whether these tokens reached them or not."""
    found: dict[str, list[Writer]] = {}
    for product in writers:
        if product.parameter in found:
            continue
        up, gate = _inner(look, product)
        shape = look.model.get_parameter(product.parameter).shape
        stacked = shape[0] // product.experts if len(shape) == 2 and product.experts else 0
        routed = is_routed(look, product)
        experts: Sequence[int | None] = range(product.experts) if product.experts else [None]
        names = beside(look, product.parameter) if routed and not product.experts else [product.parameter]
        for place, name in enumerate(names):
            inner = [rows and _in_list(look, rows, place, len(names)) for rows in (up, gate)]
            found[name] = [
                Writer(name, one, product.transposed, stacked, _of(inner[0], one), _of(inner[1], one), routed)
                for one in experts
            ]
    return tuple(writer for group in found.values() for writer in group)


def _of(rows: Rows | None, expert: int | None) -> Rows | None:
    """The same rows of another expert."""
    if rows is None or expert is None:
        return rows
    return dataclasses.replace(rows, ref=dataclasses.replace(rows.ref, expert=expert))


def _in_list(look: BlockLook, rows: Rows, place: int, members: int) -> Rows:
    """The same rows of another member of a list."""
    names = beside(look, rows.ref.parameter)
    name = names[place] if len(names) == members else rows.ref.parameter
    return dataclasses.replace(rows, ref=dataclasses.replace(rows.ref, parameter=name))


def beside(look: BlockLook, parameter: str) -> list[str]:
    """The same parameter of every member of the list that an expert kept apart stands in."""
    parts = parameter.split(".")
    for at in range(len(parts) - 1, len(look.call.name.split(".")), -1):
        home = look.model.get_submodule(".".join(parts[: at - 1]))
        if isinstance(home, nn.ModuleList):
            return [".".join([*parts[: at - 1], child, *parts[at:]]) for child, _ in home.named_children()]
    return [parameter]


def _inner(look: BlockLook, writer: Product) -> tuple[Rows | None, Rows | None]:
    """Which rows make a writer's input: those that enter as a factor, and those that go through the activation."""
    neurons = look.chosen(writer.width)
    answers = [  # by neuron, by product: one row, or two where gate and up are one matrix
        [loudest(slope, most=2) for slope in look.slopes(writer.x[..., neuron], look.leaves)] for neuron in neurons
    ]
    lines: list[tuple[Product, Rows]] = []
    for number, product in enumerate(look.products):
        rows = [of_neuron[number] for of_neuron in answers]
        for places in zip(*rows, strict=False) if len({len(one) for one in rows}) == 1 else ():
            line = _line(neurons, places)
            if line is not None:
                lines.append((product, Rows(ref_of(product), *line)))
    if len(lines) == 1:
        return lines[0][1], None
    if len(lines) != 2:
        return None, None
    factors = [_is_factor(look, writer, product, rows, neurons[0]) for product, rows in lines]
    if sum(factors) != 1:
        return None, None
    return lines[factors.index(True)][1], lines[factors.index(False)][1]


def _is_factor(look: BlockLook, writer: Product, product: Product, rows: Rows, neuron: int) -> bool:
    """Whether a row is a factor of what the writer reads: the slope does not depend on it, and it still counts below
    zero, which what went through a ReLU does not."""
    row = rows.first + rows.step * neuron
    bent, slope = look.bends(writer.x[..., neuron], product, row)
    below = product.y[..., row] < 0
    return not bent and slope is not None and (not bool(below.any()) or bool(slope[below].any()))


def _line(neurons: Sequence[int], rows: Sequence[int]) -> tuple[int, int] | None:
    """first and step such that row = first + step * neuron for all."""
    if len(neurons) < 2:
        return None
    step, left = divmod(rows[1] - rows[0], neurons[1] - neurons[0])
    first = rows[0] - step * neurons[0]
    fits = all(row == first + step * neuron for neuron, row in zip(neurons, rows, strict=True))
    return (first, step) if fits and not left and step > 0 else None

"""Graphs of a part of a model, and gradients pulled back through them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from studfinder.models import LM
from studfinder.passes.blocks import Blocks, Given
from studfinder.passes.objectives import Objective
from studfinder.patches import Journal
from studfinder.sites import uncompiled
from studfinder.texts import Batch

_LOGITS = 1 << 23
"""Logits that are held at a time: 32 MB in fp32, and a few times as much for what is computed from them."""


Wanted = dict[str, nn.Parameter]
"""Parameters that are differentiated, by name."""

Found = list[torch.Tensor | None]
"""Gradients; None where nothing depends on something."""


def from_head(
    blocks: Blocks,
    last: torch.Tensor,
    batch: Batch,
    of: Objective,
    inputs: Sequence[torch.Tensor],
    parameters: Sequence[torch.Tensor],
) -> Iterator[Found]:
    """For every draw, gradients of the objective, from what the output matrix is given, a slice of the positions after
    the other: all logits at once would not fit."""
    row_N = torch.cat([torch.full((length,), row) for row, length in enumerate(batch.lengths)])
    place_N = torch.cat([torch.arange(length) for length in batch.lengths])
    step = max(1, _LOGITS // blocks.lm.anatomy.vocabulary)
    slopes: list[torch.Tensor] = []
    sums: list[Found] = []
    for start in range(0, len(row_N), step):
        rows = row_N[start : start + step], place_N[start : start + step]
        part_NX = last.detach()[rows].requires_grad_()
        logits_NV = blocks.logits(part_NX)
        values = of(logits_NV.to(_wide(logits_NV)), batch, *rows).unbind()
        for draw, value in enumerate(values):
            if draw == len(slopes):
                slopes.append(torch.zeros_like(last))
                sums.append([None] * len(parameters))
            part, *found = pulled(
                [value], [torch.ones_like(value)], [part_NX, *parameters], more=draw < len(values) - 1
            )
            if part is not None:
                slopes[draw][rows] = part
            sums[draw] = list(map(summed, sums[draw], found))
    for draw, slope in enumerate(slopes):
        found = pulled([last], [slope], [*inputs, *parameters], more=draw < len(slopes) - 1)
        yield [*found[: len(inputs)], *map(summed, found[len(inputs) :], sums[draw])]


def pulled(outputs: Sequence[torch.Tensor], slopes: Found, inputs: Sequence[torch.Tensor], *, more: bool) -> Found:
    """Gradients of inputs from those of outputs; None where nothing depends on one."""
    pairs = zip(outputs, slopes, strict=True)
    counting = [(one, slope.to(one.dtype)) for one, slope in pairs if one.requires_grad and slope is not None]
    if not counting or not inputs:
        return [None] * len(inputs)
    ends, given = zip(*counting, strict=True)
    return list(torch.autograd.grad(ends, inputs, given, retain_graph=more, allow_unused=True))


def summed(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one.to(_wide(one)) + other


def full(found: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """A gradient in fp32; zeros if there is none."""
    return torch.zeros_like(like, dtype=_wide(like)) if found is None else found.to(_wide(found))


def _wide(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def holders(blocks: Sequence[nn.Module]) -> dict[int, set[int]]:
    """By the id of a parameter, the blocks that hold it."""
    found: dict[int, set[int]] = {}
    for step, block in enumerate(blocks):
        for parameter in block.parameters():
            found.setdefault(id(parameter), set()).add(step)
    return found


def depending(given: Given) -> list[torch.Tensor]:
    """The tensors among what blocks are given that depend on parameters, in order."""
    tensors = [one for one in tree_leaves(given.calls) if isinstance(one, torch.Tensor) and one.requires_grad]
    return list({id(one): one for one in tensors}.values())


def reached(outputs: Sequence[torch.Tensor]) -> set[int]:
    """The leaves, by id, that outputs depend on."""
    nodes = [one.grad_fn for one in outputs]
    seen, found = set(), {id(one) for one in outputs}  # a parameter may be handed to blocks as it is
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.add(id(getattr(node, "variable", None)))
        nodes += [above for above, _ in node.next_functions]
    return found


@contextmanager
def differentiable(lm: LM, wanted: Wanted) -> Iterator[None]:
    """Graphs are kept while the context lasts, of the wanted parameters and of no others."""
    taking = {id(one) for one in wanted.values()}
    with uncompiled(), Journal(lm.model) as journal, torch.inference_mode(False), torch.enable_grad():
        for one in lm.model.parameters():
            if one.requires_grad != (id(one) in taking):
                journal.then(partial(one.requires_grad_, one.requires_grad))
                one.requires_grad_(id(one) in taking)
        yield

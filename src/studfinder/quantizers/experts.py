"""Experts in one fused parameter: how transformers loads it from matrices that a checkpoint keeps apart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from studfinder.models import LM


@dataclass(frozen=True)
class Slice:
    """A matrix (out, in) of one expert.

    Attributes:
        parameter: the fused one, (experts, out, in); others may lie above and below it.
        expert: which.
        first, rows: its rows there.
        name: what it is called where it is kept apart.
    """

    parameter: str
    expert: int
    first: int
    rows: int
    name: str


def slices_of(lm: LM, parameters: Iterable[str]) -> list[Slice]:
    """The matrices that fused parameters are loaded from; those that transformers loads only whole have none.

    transformers is asked, by having it undo its own conversion on numbered rows in place of the weights. They are a few
    numbers wide, for what is split or turned shows by that too, and all experts at full width would be a model's size.
    """
    from transformers.core_model_loading import revert_weight_conversion

    numbered: dict[str, torch.Tensor] = {}
    owner: list[tuple[str, int, int]] = []  # of each number: parameter, expert, row
    for name in parameters:
        shape = lm.model.get_parameter(name).shape
        if len(shape) == 3:
            experts, rows, _ = shape
            row = torch.arange(len(owner), len(owner) + experts * rows)
            numbered[name] = row.view(experts, rows, 1).expand(experts, rows, 2 + (rows == 2))
            owner += [(name, expert, row) for expert in range(experts) for row in range(rows)]
    try:
        made = revert_weight_conversion(lm.model, numbered) if numbered else {}
    except ValueError:  # it wants parameters together that are no experts of these layers
        return []
    found = []
    for name, number in made.items():
        parameter, expert, first = owner[int(number.flatten()[0])]
        rows, width = len(number), numbered[parameter].shape[2]
        whole = number.dim() == 2 and number.shape[1] == width and torch.equal(number, number[:, :1].expand_as(number))
        if (
            whole
            and torch.equal(number[:, 0], torch.arange(rows) + number[0, 0])
            and owner[int(number[-1, 0])][1] == expert
        ):
            found.append(Slice(parameter, expert, first, rows, name))
    return _whole(lm, found)


def _whole(lm: LM, found: list[Slice]) -> list[Slice]:
    """Those of parameters that they make up between them."""
    rows: dict[str, int] = {}
    for one in found:
        rows[one.parameter] = rows.get(one.parameter, 0) + one.rows
    whole = {name for name, count in rows.items() if count == lm.model.get_parameter(name).shape[:2].numel()}
    return [one for one in found if one.parameter in whole and one.name.endswith(".weight")]

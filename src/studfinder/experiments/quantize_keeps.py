"""What the quantisers' experiments keep: findings, and as many other numbers as a control."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from studfinder.edits import Weights, matched_controls, neuron
from studfinder.models import LM
from studfinder.quantizers import HoldOut, hold_out
from studfinder.quantizers.massive_rows import massive_rows
from studfinder.records import Findings, SuperWeight

WEIGHTS, OTHERS = "the super weights", "as many other weights"
COLUMNS, OTHER_COLUMNS = "the columns of the super weights", "as many other columns of their matrices"
ROWS, OTHER_ROWS = "the rows of Q and K that make massive values", "as many other rows of Q and K"
KEEP_CONTROLS = ((WEIGHTS, OTHERS), (COLUMNS, OTHER_COLUMNS), (ROWS, OTHER_ROWS))
"""What is kept, and as many other numbers."""
LARGEST = "the largest {:.2g} %"


def findings_keeps(lm: LM, findings: Findings, *, fraction: float = 0.0, seed: int = 0) -> dict[str, HoldOut]:
    """What may be held out, by what it is called: the proven super weights, their columns, and the rows of Q and K that
    make massive values, each beside as many others, and the largest `fraction` of every matrix. What a model has not is
    left out."""
    keeps: dict[str, HoldOut] = {}
    proven = findings.proven
    if proven:
        keeps[WEIGHTS], keeps[OTHERS] = hold_out(proven), hold_out(other_weights(lm, findings))
        keeps[COLUMNS] = hold_out(proven, columns=True)
        keeps[OTHER_COLUMNS] = hold_out(other_columns(lm, proven, seed=seed))
    rows = massive_rows(lm, findings)
    if rows:
        keeps[ROWS] = hold_out(_as_weights(rows))
        keeps[OTHER_ROWS] = hold_out(other_rows(lm, rows, seed))
    if fraction:
        keeps[LARGEST.format(100 * fraction)] = hold_out(fraction=fraction)
    return keeps


def other_weights(lm: LM, findings: Findings) -> list[Weights]:
    """For each proven super weight another of its matrix, the nearest in size."""
    taken = {weight.index for weight in findings.proven}
    return [matched_controls(lm, weight, findings, count=2, exclude=taken)[0] for weight in findings.proven]


def other_columns(lm: LM, weights: Sequence[SuperWeight], *, seed: int = 0) -> list[Weights]:
    """As many columns as these weights have, drawn among the others of their matrices."""
    return [neuron(lm, layer, col, number) for layer, col, number in other_neurons(lm, weights, seed=seed)]


def other_neurons(lm: LM, weights: Sequence[SuperWeight], *, seed: int = 0) -> list[tuple[int, int, int]]:
    """The same by (layer, column, which of the layer's writers)."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    places = {(weight.layer, weight.parameter, weight.expert) for weight in weights}
    for layer, name, expert in sorted(places, key=lambda place: (*place[:2], place[2] or 0)):
        own = {weight.col for weight in weights if (weight.parameter, weight.expert) == (name, expert)}
        writers = lm.anatomy.layers[layer].writers
        number = next(at for at, ref in enumerate(writers) if (ref.parameter, ref.expert) == (name, expert))
        columns = writers[number].view(lm.model.get_parameter(name)).shape[1]
        rest = sorted(set(range(columns)) - own)
        chosen = torch.randperm(len(rest), generator=generator)[: len(own)].tolist()
        found += [(layer, rest[place], number) for place in chosen]
    return found


def other_rows(lm: LM, rows: dict[str, list[int]], seed: int) -> list[Weights]:
    """As many rows of each matrix, drawn among the others; fewer where there are not so many."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, own in rows.items():
        rest = sorted(set(range(lm.model.get_parameter(name).shape[0])) - set(own))
        chosen = torch.randperm(len(rest), generator=generator)[: len(own)].tolist()
        if chosen:
            found[name] = sorted(rest[place] for place in chosen)
    return _as_weights(found)


def _as_weights(rows: dict[str, list[int]]) -> list[Weights]:
    return [Weights(parameter=name, entries=tuple((row, None) for row in own)) for name, own in rows.items()]

"""Edits as a stream of the engine: in which blocks they are in force, and what of the first one they leave alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from studfinder.edits.apply import GivenEdits, edited
from studfinder.edits.edit import Edit, SiteEdit
from studfinder.edits.makers import null
from studfinder.edits.spec import edits_of
from studfinder.models import LM
from studfinder.models.offloaded import tied_to
from studfinder.passes import Blocks, Stream
from studfinder.sites import Journal, Site


def stream_of(lm: LM, edits: GivenEdits) -> Stream:
    """The model under some edits, as a stream. Raises as `edited`, and at the end of a pass as that when it ends."""
    change = edited(lm, edits)
    places = [_places(lm, edit) for edit in change.edits]
    first = min((layers[0] for layers, _ in places), default=len(lm.anatomy.layers))
    last = max((layers[-1] for layers, _ in places), default=first)
    touches = [names for layers, names in places if layers[0] == first]
    known = [name for names in touches for name in names or ()]
    return Stream(
        enter=lambda layer: change.applied(lambda number: layer in places[number][0]),
        first=first,
        last=last,
        touches=None if None in touches else tuple(known),
        masked=any(isinstance(edit, SiteEdit) for edit in change.edits),
        done=change.check_done,
    )


def replaced_stream(lm: LM, parameters: Mapping[str, torch.Tensor]) -> Stream:
    """The model with other numbers in some parameters, by name, as a stream.

    Where they fit as they are, the tensors themselves stand in the parameters' places: numbers written into weights
    that are mapped from a file would stay in memory, page by page, until there is all of the model.
    """
    places = {name: parameter_places(lm, name) for name in parameters}
    first = min(own[0] for own, _ in places.values())
    touches = [names for own, names in places.values() if own[0] == first]

    @contextmanager
    def enter(layer: int) -> Iterator[None]:
        with Journal(lm.model) as journal:
            for name, (own, _) in places.items():
                if layer in own:
                    _put(journal, lm, name, parameters[name])
            yield

    known = [name for names in touches for name in names or ()]
    return Stream(
        enter=enter,
        first=first,
        last=max(own[-1] for own, _ in places.values()),
        touches=None if None in touches else tuple(dict.fromkeys(known)),
    )


def _put(journal: Journal, lm: LM, name: str, value: torch.Tensor) -> None:
    now = lm.model.get_parameter(name)
    if (value.shape, value.dtype, value.device) != (now.shape, now.dtype, now.device):
        journal.write(name, value)
        return
    for one in tied_to(lm.model, name):
        journal.replace(one, value)


def null_streams(lm: LM, edits: GivenEdits, draws: int = 8, seed: int = 0) -> list[Stream]:
    """Several draws of the edits' null, each a stream; see `null`. Raises as `edited` and `null`."""
    given = edits_of(lm, edits)
    return [stream_of(lm, null(given, seed + draw)) for draw in range(draws)]


def _places(lm: LM, edit: Edit) -> tuple[Sequence[int], tuple[str, ...] | None]:
    """The layers in which an edit is in force (-1: before the blocks; their number: after them), and the modules that
    it touches in the first; None if it may be any."""
    if isinstance(edit, SiteEdit):
        layer = Site.parse(edit.site).layer
        return [0 if layer is None else layer], None
    return parameter_places(lm, edit.target.parameter)


def parameter_places(lm: LM, parameter: str) -> tuple[Sequence[int], tuple[str, ...] | None]:
    """The layers that use a parameter (-1: before the blocks; their number: after them), and the modules of the first
    of them that do; None if it may be any."""
    depth = len(lm.anatomy.layers)
    names = tied_to(lm.model, parameter)  # wherever it is used, under whatever name
    blocks = [layer.block + "." for layer in lm.anatomy.layers]
    layers = [number for number, block in enumerate(blocks) if any(name.startswith(block) for name in names)]
    outside = {name for name in names if not name.startswith(tuple(blocks))}
    if outside:
        # What comes before the blocks may be asked for again in front of each.
        return [*layers, depth] if outside <= Blocks(lm).after else range(-1, depth + 1), None
    return layers, tuple(name.rpartition(".")[0] for name in names if name.startswith(blocks[layers[0]]))

"""Parameters that are one tensor under two names: whoever edits one edits the other."""

from __future__ import annotations

from collections.abc import Iterable

from studfinder.edits.edit import Edit, SiteEdit
from studfinder.models import LM
from studfinder.models.offloaded import tied_to


class TiedWeightsWarning(UserWarning):
    """An edit reaches further than its parameter's name says."""


def tied_notes(lm: LM, edits: Iterable[Edit]) -> tuple[str, ...]:
    """What else the edits change because it is tied to what they name (an embedding and its head, mostly); a sentence
    for each parameter, empty where nothing is tied."""
    blocks = tuple(f"{layer.block}." for layer in lm.anatomy.layers)
    names = {edit.target.parameter for edit in edits if not isinstance(edit, SiteEdit)}
    outside = sorted(name for name in names if not name.startswith(blocks))
    if not outside:  # what a block holds is tied to nothing: the list of all parameters is not walked for it
        return ()
    notes = []
    for name in outside:
        others = [other for other in tied_to(lm.model, name) if other != name]
        if others:
            notes.append(f"{name} is tied to {' and '.join(others)}: the edit changes both")
    return tuple(notes)

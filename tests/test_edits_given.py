"""What `edited` takes: edits, lists of them, lines of text; everything else is refused by name."""

from __future__ import annotations

import pytest
import torch

from patching import (
    DOWN,
    IDS,
    logits,
)
from scanned import a_scan
from studfinder.edits import Activations, EditList, Everything, edited, entry, mean, zero
from studfinder.errors import StudfinderError
from studfinder.models import LM
from tiny import tiny


def given(lm: LM) -> list[tuple[object, tuple]]:
    """What may be given, and what it means."""
    a, b = zero(entry(lm, 1, 3, 4)), mean(Activations("residual[1]", Everything()))
    line = f"zero:{DOWN}[3,4]"
    return [
        (a[0], a),
        ([a, b], (*a, *b)),
        ([[a], (b, [a])], (*a, *b, *a)),
        ((edit for edit in a), a),
        (line, a),
        ([line, b, "mean:residual[1].all"], (*a, *b, *b)),
        (EditList(edits=(*a, *b)), (*a, *b)),
    ]


@pytest.mark.parametrize("case", range(7))
def test_lists_and_lines_mean_their_edits(case: int) -> None:
    lm = tiny("llama")
    what, meant = given(lm)[case]
    assert edited(lm, what).edits == meant
    what, _ = given(lm)[case]
    with edited(lm, what):
        found = logits(lm)
    with edited(lm, meant):
        assert torch.equal(found, logits(lm))
    from studfinder.measures.effects import effects_of

    what, _ = given(lm)[case]
    ids = [IDS[0].tolist()]
    assert effects_of(lm, ids, [what]).kl.tolist() == effects_of(lm, ids, [meant]).kl.tolist()


def not_edits(lm: LM) -> list[tuple[object, str]]:
    findings = a_scan()[0]
    return [
        (findings, "Findings says which numbers, not what becomes of them"),
        ([findings], "Findings says which numbers"),
        (entry(lm, 1, 3, 4), "Weights says which numbers"),
        (Activations("residual[1]", Everything()), "Activations says which numbers"),
        (None, "NoneType is no edit"),
        (0.5, "float is no edit"),
        ([None], "NoneType is no edit"),
        ({"zero": 1}, "dict is no edit"),
        (torch.zeros(2), "Tensor is no edit"),
        (b"zero", "bytes is no edit"),
        (zero, "function is no edit"),
        (lm, "LM is no edit"),
        ([], "there are no edits"),
        ([[], ()], "there are no edits"),
        ("", "'' is not an edit"),
        ("zero", "'zero' is not an edit"),
        (["nothing:here"], "'nothing' is not a kind of edit|there is no"),
    ]


@pytest.mark.parametrize("case", range(17))
def test_what_is_no_edit_is_refused_by_name(case: int) -> None:
    lm = tiny("llama")
    what, words = not_edits(lm)[case]
    with pytest.raises(StudfinderError, match=words):
        edited(lm, what)

"""Law 11 on resident weights: blocks run one at a time, streams that fork from the clean one, are the model's own
forward pass bit by bit, in every architecture. All in `make deep`, the forty that differ most in `make test`."""

from __future__ import annotations

import random

import pytest
import torch
import transformers

from architected import PARTS, TYPES, built
from carried import FORTY, at_sites, drawn, everywhere, texts, wrong
from outside import quick_and_deep
from studfinder.models import LM, load
from tried import NO_TOKENS


@pytest.fixture(scope="module", params=quick_and_deep(TYPES, *FORTY))
def kind(request) -> str:
    if not hasattr(transformers, PARTS[request.param]["cls"]):
        pytest.skip(f"transformers {transformers.__version__} has no {request.param} yet")
    return request.param


@pytest.fixture(scope="module")
def lm(kind: str) -> LM:
    return load(built(kind))


def test_streams_are_the_models_own_forward_pass(kind: str, lm: LM):
    """Law 11: with nothing changed, and with edits anywhere, in two batches with padding."""
    one = random.Random(kind).sample(everywhere(lm), 3)
    assert wrong(lm, [*([edit] for edit in one), *drawn(lm, kind, 3)], texts(lm, 9, 6)) == []


def test_streams_of_edited_activations_are_the_models_own_forward_pass(kind: str, lm: LM):
    if kind in NO_TOKENS:
        pytest.skip(NO_TOKENS[kind])
    assert wrong(lm, [[edit] for edit in at_sites(lm)], texts(lm, 7, 5)[:1]) == []


@pytest.mark.deep
def test_streams_of_an_edit_of_any_parameter_are_the_models_own_forward_pass(kind: str, lm: LM):
    for layer in range(len(lm.anatomy.layers)):
        assert wrong(lm, [[edit] for edit in everywhere(lm, layer)], texts(lm, 9, 9)[:1]) == []


@pytest.mark.deep
def test_streams_in_bf16_are_the_models_own_forward_pass(kind: str):
    lm = load(built(kind, dtype=torch.bfloat16))
    assert wrong(lm, drawn(lm, kind, 4), texts(lm, 9, 6)) == []

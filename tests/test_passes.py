"""Law 11 on resident weights: blocks run one at a time, streams that fork from the clean one, are the model's own
forward pass bit by bit, in every architecture. All in `make deep`, the forty that differ most in `make test`."""

from __future__ import annotations

import random

import pytest
import torch
import transformers

from architected import PARTS, TYPES, built
from carried import FORTY, at_sites, drawn, everywhere, loaded, outside, scaled, texts, wrong
from outside import quick_and_deep
from studfinder.edits import stream_of
from studfinder.models import LM, load
from studfinder.passes import BlockRuns, Blocks, carry
from tried import EIGHT, NO_TOKENS

pytestmark = pytest.mark.filterwarnings("ignore::studfinder.edits.TiedWeightsWarning")


@pytest.fixture(scope="module", params=quick_and_deep(TYPES, *FORTY))
def kind(request) -> str:
    if not hasattr(transformers, PARTS[request.param]["cls"]):
        pytest.skip(f"transformers {transformers.__version__} has no {request.param} yet")
    return request.param


@pytest.fixture(scope="module")
def lm(kind: str) -> LM:
    return loaded(kind)


def test_streams_are_the_models_own_forward_pass(kind: str, lm: LM):
    """Law 11: with nothing changed, and with edits anywhere, in two batches with padding."""
    single = random.Random(kind).sample(everywhere(lm), 2)
    assert wrong(lm, [*([edit] for edit in single), *drawn(lm, kind, 2)], texts(lm, 6, 4)) == []


@pytest.mark.parametrize("kind", quick_and_deep(TYPES, *EIGHT), indirect=True, scope="module")
def test_streams_of_edited_activations_are_the_models_own_forward_pass(kind: str, lm: LM):
    if kind in NO_TOKENS:
        pytest.skip(NO_TOKENS[kind])
    assert wrong(lm, [[edit] for edit in at_sites(lm)], texts(lm, 6, 4)[:1]) == []


def test_what_only_the_end_uses_is_edited_there(kind: str, lm: LM):
    """The last norm and an untied head: no block runs again for them."""
    names, work = [name for name in outside(lm) if name in Blocks(lm).after], BlockRuns()
    assert names or kind == "openai-gpt"  # it has no last norm, and its head is tied
    edits = [[scaled(lm, name)] for name in names]
    assert wrong(lm, edits, texts(lm, 6, 4)) == []
    list(carry(lm, texts(lm, 6, 4), [stream_of(lm, one) for one in edits], work=work))
    assert work.blocks == len(Blocks(lm).layers)


@pytest.mark.deep
def test_streams_of_an_edit_outside_the_blocks_are_the_models_own_forward_pass(kind: str, lm: LM):
    assert wrong(lm, [[scaled(lm, name)] for name in outside(lm)], texts(lm, 9, 9)[:1]) == []


@pytest.mark.deep
def test_streams_of_an_edit_of_any_parameter_are_the_models_own_forward_pass(kind: str, lm: LM):
    depth = len(lm.anatomy.layers)
    for layer in {0, depth // 2, depth - 1}:
        assert wrong(lm, [[edit] for edit in everywhere(lm, layer)], texts(lm, 9, 9)[:1]) == []


@pytest.mark.deep
def test_streams_in_bf16_are_the_models_own_forward_pass(kind: str):
    model = built(kind, dtype=torch.bfloat16)
    try:
        model(input_ids=torch.arange(3, 9)[None], use_cache=False)
    except RuntimeError as error:
        pytest.skip(f"{kind} itself does not run in bf16: {error}")
    lm = load(model)
    assert wrong(lm, drawn(lm, kind, 4), texts(lm, 9, 6)) == []

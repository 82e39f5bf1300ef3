"""The attention variants in the built-in model."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

import studfinder as sf
import studfinder.attention as sa
from builtins_here import REAL_DTYPE

pytestmark = pytest.mark.real

TEXT = (
    "The kitchen had been quiet since morning. On the table stood a bowl of plums, and beside it lay "
    "the letter that nobody had opened. When the bell rang, she took the letter, and left the plums "
    "where they were."
)


@pytest.fixture(scope="module")
def whole() -> sf.LM:
    return sf.load("smollm2", dtype=REAL_DTYPE)


@pytest.fixture
def lm(whole: sf.LM) -> sf.LM:
    """A copy, to be converted."""
    return sf.LM(copy.deepcopy(whole.model), whole.tokenizer, whole.anatomy, whole.source)


def _loss(lm: sf.LM) -> torch.Tensor:
    ids = lm.tokenizer(TEXT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return lm.model(ids, labels=ids).loss


@pytest.mark.parametrize(
    "variants",
    [
        [sa.KVShift()],
        [sa.Gated(kind="elementwise")],
        [sa.KVShift(), sa.Gated()],
        [sa.Differential(init="copy")],
    ],
    ids=["kv_shift", "gated", "both", "differential"],
)
def test_identity_start_keeps_the_perplexity_to_the_last_bit(lm: sf.LM, variants) -> None:
    before = _loss(lm)
    for variant in variants:
        sa.convert(lm, variant)
    assert torch.equal(_loss(lm), before)


def test_clipping_without_training_hurts_and_gamma_zero_does_not(whole: sf.LM, lm: sf.LM) -> None:
    plain = _loss(whole)
    other = sf.LM(copy.deepcopy(whole.model), whole.tokenizer, whole.anatomy, whole.source)
    same = _loss(sa.convert(lm, sa.ClippedSoftmax(gamma=0.0), init="fresh"))
    clipped = _loss(sa.convert(other, sa.ClippedSoftmax(gamma=-0.03), init="fresh"))
    assert abs(same - plain) < 0.05  # another order of summation, in bf16
    assert clipped > plain + 0.2


def test_converted_model_is_saved_and_generates_as_before(lm: sf.LM, tmp_path) -> None:
    prompt = lm.tokenizer("The capital of France is", return_tensors="pt")
    options = {"max_new_tokens": 12, "do_sample": False}
    wanted = lm.model.generate(**prompt, **options)
    sa.convert(lm, sa.KVShift())
    lm.model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config.model_type == "studfinder-llama"
    assert torch.equal(again.generate(**prompt, **options), wanted)
    assert torch.equal(
        again.generate(**prompt, num_beams=3, **options), lm.model.generate(**prompt, num_beams=3, **options)
    )

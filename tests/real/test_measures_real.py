"""The measures on the built-in model: headroom where there should be some, and a known edit is seen."""

from __future__ import annotations

import pytest
import torch

import studfinder as sf
from builtins_here import REAL_DTYPE
from studfinder.measures import Scores, compare
from studfinder.measures.facts import facts
from studfinder.measures.induction import induction
from studfinder.measures.likelihood import log_likelihoods
from studfinder.measures.matched_facts import contrast, facts_in_context, facts_parametric_matched
from studfinder.measures.passkey import passkey
from studfinder.texts import default_prompts, encode_pairs

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def smollm2() -> sf.LM:
    return sf.load("smollm2", dtype=REAL_DTYPE)


@pytest.fixture(scope="module")
def read(smollm2) -> Scores:
    """How well it reads facts, as it is."""
    return facts_in_context(smollm2, limit=64)


def test_fast_likelihoods_are_the_plain_ones_in_fp32():
    lm = sf.load("smollm2", dtype="float32")
    texts = [prompt.text for prompt in default_prompts()[:3]]
    pairs = encode_pairs(lm, [(text[:cut], text[cut : cut + 30]) for text in texts for cut in (60, 61, 150)])
    pairs += [(context, continuation[::-1]) for context, continuation in pairs]
    for found, (context, continuation) in zip(log_likelihoods(lm, pairs), pairs, strict=True):
        with torch.no_grad():
            logits = lm.model(torch.tensor([context + continuation]), use_cache=False).logits[0]
        log_p = logits.log_softmax(-1)[len(context) - 1 : -1]
        assert found.logprob == pytest.approx(float(log_p[range(len(continuation)), continuation].sum()), abs=5e-3)


def test_it_knows_facts_and_reads_them_with_headroom(smollm2, read):
    known = facts(smollm2, limit=90)
    assert known.interval.low > 2 * known.chance
    assert known.value > known.details["as they come"]  # likely answers are likely everywhere
    assert read.interval.low > read.chance
    assert read.value < 0.95


def test_it_copies_by_induction_and_a_head_shows_it(smollm2):
    scores = induction(smollm2, limit=6)
    assert scores.value > 0.4
    assert scores.details["loss"] < scores.details["first loss"] - 5
    assert scores.details["prefix matching"] > 0.5


@pytest.mark.deep
def test_without_its_super_weight_context_and_memory_both_suffer(smollm2, read):
    """Layer 11's down_proj[507, 1229]: the pairs are the same items, the model is not."""
    weight = smollm2.model.model.layers[11].mlp.down_proj.weight
    runs = [read, facts_parametric_matched(smollm2, limit=64)]
    keys = passkey(smollm2, "128", limit=5)
    before = weight[507, 1229].item()
    with torch.no_grad():
        weight[507, 1229] = 0
    try:
        edited = [measure(smollm2, limit=64) for measure in (facts_in_context, facts_parametric_matched)]
        lost = compare(keys, passkey(smollm2, "128", limit=5))
    finally:
        with torch.no_grad():
            weight[507, 1229] = before
    found = contrast(runs[0], edited[0], runs[1], edited[1])
    assert found.context.high < 0
    assert found.memory.high < 0
    assert lost.interval.value < 0

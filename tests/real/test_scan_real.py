"""The main job on real models: what is known of each is what a scan says."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

import studfinder as sf
from builtins_here import REAL_DTYPE
from studfinder.detectors.iterative import iterative_search
from studfinder.prove import prove
from studfinder.sites import AttentionCall, BlockOutput, WriterCall, tapped
from studfinder.texts import default_prompts, encode
from studfinder.texts.prompts import Text

pytestmark = [pytest.mark.real, pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def smollm2() -> sf.LM:
    return sf.load("smollm2", dtype=REAL_DTYPE)


@pytest.fixture(scope="module")
def findings(smollm2) -> sf.Findings:
    """A scan without its proof, which takes most of the time."""
    return sf.scan(smollm2, prove=False)


def test_its_super_weight_is_proven_and_the_look_alike_is_not(smollm2, findings):
    """Of all candidates these two alone."""
    late = next(weight for weight in findings.super_weights if weight.layer >= 28)
    judged = prove(smollm2, replace(findings, super_weights=(findings.super_weights[0], late)))
    best, other = judged.super_weights
    assert best.verdict == "proven"
    assert best.effect.perplexity_ratio.low > 3
    assert len(best.effect.control_kls) == 20
    assert best.effect.kl.low > max(best.effect.control_kls)
    assert other.verdict not in ("proven", "proven-jointly")


@pytest.mark.deep
def test_the_whole_scan_proves_what_holds_the_model_up(smollm2):
    """On a processor without bf16 arithmetic the slowest test of all."""
    whole = sf.scan(smollm2)
    assert str(whole.super_weights[0]) == "layers.11 down_proj[507, 1229]"
    assert whole.super_weights[0].verdict == "proven"
    proven = {str(one) for one in whole.proven_numbers}
    assert proven >= {
        "layers.11 down_proj[507, 1229]",
        "layers.2 down_proj[507, 90]",
        "layers.2 down_proj[507, 430]",
        "layers.9 down_proj[260, 200]",
        "layers.29 post_attention_layernorm[17]",
        "layers.1 input_layernorm[507]",
    }
    assert whole.census.heavy >= 15
    assert whole.census.unseen < 500
    late = [weight for weight in whole.super_weights if weight.layer >= 28]
    assert late
    assert all(weight.verdict not in ("proven", "proven-jointly") for weight in late)
    clean, without, control = (continuation.text for continuation in whole.continuations)
    # A control may change a word; the super weight changes everything from the start.
    assert clean[:60] == control[:60]
    assert clean[:10] != without[:10]


def test_the_super_weight_of_smollm2_comes_first(smollm2, findings):
    best = findings.super_weights[0]
    assert str(best) == "layers.11 down_proj[507, 1229]"
    assert best.share == pytest.approx(0.74, abs=0.03)
    assert smollm2.model.get_parameter(best.parameter)[best.index].item() == best.value


def test_its_massive_activation_is_dim_507_at_the_first_token(findings):
    top = max(findings.massive_activations, key=lambda entry: abs(entry.value))
    assert (top.dim, top.position, top.token_class) == (507, 0, "first")
    assert abs(top.value) > 20_000
    assert findings.summary.enters == 11


def test_massive_values_are_in_q_and_k_and_hardly_in_v(findings):
    layers = {tensor: {e.layer for e in findings.massive_values if e.tensor == tensor} for tensor in ("query", "key")}
    assert layers["query"] == set(range(30))
    assert layers["key"] >= set(range(1, 30))
    entries = Counter(entry.tensor for entry in findings.massive_values)
    assert entries["value"] < 0.05 * entries["query"]


def test_its_record_says_what_it_is(findings):
    dtype = "bfloat16" if REAL_DTYPE == "auto" else REAL_DTYPE
    assert (findings.model.dtype, findings.prompts.bos, findings.nonfinite) == (dtype, False, ())
    assert "Q4_1 weights expanded to bf16" in findings.model.origin
    assert len(findings.attention_sinks) > 100


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_reading_it_changes_no_bit(attention):
    lm = sf.load("smollm2", dtype=REAL_DTYPE, attention=attention)
    encoded, _ = encode(lm, default_prompts()[:3])
    pad = lm.model.config.pad_token_id or 0
    width = max(map(len, encoded))
    ids = torch.tensor([[pad] * (width - len(e)) + e for e in encoded])
    mask = torch.tensor([[0] * (width - len(e)) + [1] * len(e) for e in encoded])
    seen: list = []
    with torch.no_grad():
        clean = lm.model(input_ids=ids, attention_mask=mask).logits
        with tapped(lm, read={event: [seen.append] for event in (AttentionCall, BlockOutput, WriterCall)}):
            read = lm.model(input_ids=ids, attention_mask=mask).logits
    assert lm.dtype == (torch.bfloat16 if REAL_DTYPE == "auto" else torch.float32)
    assert torch.equal(clean.view(torch.int16), read.view(torch.int16))
    assert len(seen) == 1 + 3 * 30


def test_its_results_do_not_depend_on_the_batch_size(smollm2):
    prompts = [replace(prompt, text=prompt.text[:300]) for prompt in default_prompts()[:4]]
    one, four = (sf.scan(smollm2, prompts=prompts, batch_size=size, prove=False) for size in (1, 4))
    assert str(one.super_weights[0]) == str(four.super_weights[0])
    tops = [max(found.massive_activations, key=lambda e: abs(e.value)) for found in (one, four)]
    assert tops[0].dim == tops[1].dim
    assert tops[0].value == pytest.approx(tops[1].value, rel=0.02)


def test_a_tiny_story_teller_has_none_of_the_three(small_models):
    folder = small_models / "stories260k"
    if not folder.is_dir():
        pytest.skip("stories260k is not there")
    found = sf.scan(sf.load(folder))
    assert found.super_weights == ()
    assert found.massive_activations == ()
    assert [entry for entry in found.massive_values if entry.tensor != "value"] == []
    assert found.summary.nearest_super_weight is not None
    assert found.prompts.total > 100
    assert found.proven == ()


def test_gemma_is_read_with_its_bos_and_its_qk_norm():
    lm = sf.load("gemma3-270m")
    found = sf.scan(lm, prompts=default_prompts()[:3], prove=False)
    assert found.prompts.bos
    assert (found.model.architecture, found.model.dtype) == ("gemma3_text", "bfloat16")
    assert found.nonfinite == ()
    assert max(abs(entry.value) for entry in found.massive_activations) > 10_000
    assert [entry.layers for entry in found.summary.massive_values] == [18, 18, 18]


@pytest.mark.parametrize("prompts", ["the paper's", pytest.param("ours, their beginnings", marks=pytest.mark.deep)])
def test_the_papers_loop_finds_both_of_its_super_weights(prompts):
    lm = sf.load("smollm2", dtype="float32")  # quicker than bfloat16 where the processor has none
    texts = (
        [Text("paper", "Apple Inc. is a worldwide tech company.")] if prompts == "the paper's" else default_prompts()
    )
    encoded = [ids[:32] for ids in encode(lm, texts)[0]]
    found = [(weight.layer, weight.row, weight.col) for weight in iterative_search(lm, encoded)]
    assert {(2, 507, 90), (11, 507, 1229)} <= set(found)
    assert found.index((2, 507, 90)) < found.index((11, 507, 1229))
    assert len(found) == len(set(found)) < 20

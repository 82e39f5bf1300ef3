"""equalize: what is changed computes the same, rounds better, and is what is written."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

import studfinder as sf
from scanned import findings_for
from studfinder.cli.app import run_cli
from studfinder.errors import StudfinderError
from studfinder.models import LM, content_hash, load
from studfinder.quantizers import KVCache, Scheme, quantized_cache, targets
from studfinder.quantizers.equal import columns, equal_parameters, equalized, rounding_cost
from studfinder.quantizers.importance import importance_sums
from studfinder.quantizers.key_bias import frequencies, invisible_pairs, key_biases, value_biases
from studfinder.quantizers.rotary_pairs import pairs_of
from studfinder.records import Equivalence, to_json
from studfinder.runs import read
from studfinder.verbs.equalize import equalize
from tiny import ARCHITECTURES, CONFIGS, prompts, tiny, token_ids, tokenizer

DOWN = "model.layers.1.mlp.down_proj.weight"
INT4 = Scheme(element="int4", block="channel", zero="integer")


def logits(lm: LM, ids: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return lm.model(input_ids=token_ids() if ids is None else ids).logits.clone()


def spiked() -> LM:
    """A model one of whose neurons is far louder than the others."""
    lm = tiny("llama")
    with torch.no_grad():
        lm.model.get_parameter(DOWN.replace("down", "up"))[4] *= 200
    return lm


def biased(size: float = 40.0, *, slow: bool = True) -> LM:
    """A qwen2 whose keys have a large bias in a slow pair, or in a fast one."""
    config = AutoConfig.for_model("qwen2", **CONFIGS["qwen2"])
    config.rope_parameters = {"rope_type": "default", "rope_theta": 1e9}  # so that the slowest pair hardly turns
    torch.manual_seed(0)
    lm = load(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())
    with torch.no_grad():
        for layer in range(len(lm.anatomy.layers)):
            key = lm.anatomy.layers[layer].mixer.key
            lm.model.get_parameter(f"model.layers.{layer}.self_attn.q_proj.weight").mul_(40)  # so that keys matter
            bias = lm.model.get_parameter(f"{key.ref.module}.bias")
            bias.zero_()
            pair_D = pairs_of(lm, layer)
            pair = int(pair_D.max()) if slow else 0
            for first in key.first:
                bias[first + int((pair_D == pair).nonzero()[0])] = size
    return lm


# --- columns --------------------------------------------------------------------------------------------------------


def test_the_power_of_a_column_is_the_one_that_rounds_best_and_the_model_is_the_same() -> None:
    lm, windows = spiked(), prompts()
    (change,), notes = columns(lm, [(1, 4)], windows, INT4)
    assert not notes
    assert change.power > 0
    assert change.exact
    (target,) = [one for one in targets(lm) if one.name == DOWN]
    sums, count = importance_sums(lm, (target,), windows, apart=False)[DOWN]
    errors = {}
    for power in range(9):
        w, m = target.weight(lm).detach().clone(), (sums / count).float()
        w[:, 4] *= 2.0**power
        m[4] /= 4.0**power
        errors[power] = rounding_cost(w, m, INT4)
    assert change.power == min(errors, key=errors.get)
    assert errors[change.power] < 0.5 * errors[0]
    before, digest = logits(lm), content_hash(lm)
    with equalized(lm, [change]):
        assert torch.equal(logits(lm), before)
        assert content_hash(lm) != digest
    assert content_hash(lm) == digest
    changed = equal_parameters(lm, [change])
    assert set(changed) == {DOWN, DOWN.replace("down", "up")}


def test_a_column_that_meets_no_spike_is_left_and_so_is_a_mixture() -> None:
    changes, notes = columns(tiny("llama"), [(1, 4)], prompts(), Scheme(element="int8", block="channel"))
    assert not changes or changes[0].power < 3
    changes, notes = columns(tiny("mixtral"), [(1, 4)], prompts(), INT4)
    assert not changes
    assert "mixture" in notes[0]


# --- biases ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(2, 64), st.floats(1e-5, 1.0))
@settings(deadline=None)
def test_the_bound_holds_for_any_query_and_keys(seed, tokens, bound) -> None:
    """KL of attention with and without the bias of the pairs that are taken, for queries up to the size measured."""
    random = torch.Generator().manual_seed(seed)
    pairs, scaling = 6, 0.3
    freq = torch.rand(pairs, generator=random, dtype=torch.float64) ** 6
    bias = torch.randn(pairs, 2, generator=random, dtype=torch.float64) * 5
    query = torch.randn(pairs, 2, generator=random, dtype=torch.float64) * 3
    taken, worst = invisible_pairs(
        bias.norm(dim=1), query.norm(dim=1)[None], freq, scaling, context=tokens, bound=bound
    )
    assert worst <= bound * (1 + 1e-9)
    scores = torch.randn(tokens, generator=random, dtype=torch.float64) * 4
    angle = freq[None] * torch.arange(tokens, dtype=torch.float64)[:, None]
    turned = torch.stack(
        [
            bias[:, 0] * angle.cos() - bias[:, 1] * angle.sin(),
            bias[:, 0] * angle.sin() + bias[:, 1] * angle.cos(),
        ],
        dim=-1,
    )
    more = scaling * (turned * query).sum(-1)  # (tokens, pairs)
    was = (scores + more.sum(1)).log_softmax(0)
    now = (scores + more[:, ~taken].sum(1)).log_softmax(0)
    assert float((was.exp() * (was - now)).sum()) <= worst + 1e-12


def test_a_key_bias_in_slow_pairs_is_taken_and_one_in_fast_pairs_is_not() -> None:
    windows = prompts((20, 24, 22, 28))
    lm = biased()
    changes, _ = key_biases(lm, windows, context=64, bound=1e-4)
    assert {change.head for change in changes} == set(range(lm.anatomy.kv_heads))
    assert {change.layer for change in changes} == set(range(len(lm.anatomy.layers)))
    assert all(change.taken > 0.99 and 0 < change.bound <= 1e-4 for change in changes)
    before = logits(lm)
    with equalized(lm, changes) as bench:
        assert not any(lm.model.get_parameter(name).any() for name in bench.journal.written)
        assert (logits(lm) - before).abs().max() < 0.02
        with quantized_cache(lm, KVCache(element="int8")):
            rounded = logits(lm)
    with quantized_cache(lm, KVCache(element="int8")):
        worse = logits(lm)
    assert (rounded - before).norm() < 0.3 * (worse - before).norm()
    fast, notes = key_biases(biased(slow=False), windows, context=64, bound=1e-4)
    assert not fast
    assert not notes


def test_without_positions_a_key_bias_is_invisible_exactly() -> None:
    lm = tiny("opt")
    changes, notes = key_biases(lm, prompts(), context=10**6, bound=1e-4)
    assert changes
    assert not notes
    assert all(change.exact and change.bound == 0 and change.taken == pytest.approx(1) for change in changes)
    before = logits(lm)
    with equalized(lm, changes):
        assert torch.allclose(logits(lm), before, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "words"),
    [("llama", "there are none"), ("gpt_oss", "a sink logit")],
)
def test_what_cannot_be_taken_is_said(kind, words) -> None:
    changes, notes = key_biases(tiny(kind), prompts(), context=64, bound=1e-4)
    assert not changes
    assert any(words in note for note in notes)


def test_how_fast_pairs_turn_is_the_models_own() -> None:
    lm = tiny("qwen2")
    theta, dim = lm.model.config.rope_parameters["rope_theta"], lm.anatomy.head_dim
    wanted = [theta ** (-2 * pair / dim) for pair in range(dim // 2)]
    assert frequencies(lm, 0, dim // 2).tolist() == pytest.approx(wanted, rel=1e-5)


def test_a_bias_of_v_comes_out_of_attention_as_it_went_in() -> None:
    lm = tiny("opt")
    changes, _ = value_biases(lm)
    assert len(changes) == len(lm.anatomy.layers)
    before = logits(lm)
    with equalized(lm, changes):
        assert not any(lm.model.get_parameter(change.parameter).any() for change in changes)
        assert torch.allclose(logits(lm), before, atol=1e-4)
    assert "no output projection" in value_biases(tiny("qwen2"))[1][0]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_in_every_type_what_may_be_taken_leaves_the_model_what_it_is(kind) -> None:
    lm = tiny(kind)
    changes = [*key_biases(lm, prompts(), context=64, bound=1e-4)[0], *value_biases(lm)[0]]
    biased = any(name.endswith("bias") and "norm" not in name for name, _ in lm.model.named_parameters())
    assert biased or not changes
    before = logits(lm)
    with equalized(lm, changes):
        assert (logits(lm) - before).abs().max() <= 2e-3 * before.abs().max()
    assert torch.equal(logits(lm), before)


# --- the verb -------------------------------------------------------------------------------------------------------


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(" ".join(f"w{3 + (place * place + place // 7) % 50}" for place in range(1500)))
    return path


def asked(text, **more):
    return {"calibration": text, "samples": 3, "length": 24, "text": text, "limit": 4, "lengths": (24, 48), **more}


def test_what_is_written_is_an_equivalent_plain_checkpoint(tmp_path, text) -> None:
    lm = replace(spiked(), tokenizer=tokenizer())
    findings = findings_for(lm, [(DOWN, (3, 4), "proven")])
    formats = ("int4-channel-zero", "int8-channel")
    made = equalize(lm, tmp_path / "out", findings=findings, formats=formats, **asked(text))
    assert [change.kind for change in made.changes] == ["column"]
    assert all(check.equal and check.largest == 0 for check in made.checks)
    assert [check.tokens for check in made.checks] == [24, 48]
    gains = {gain.stored_as: gain for gain in made.gains}
    assert gains["int4-channel-zero"].less.low > 0
    assert "bit for bit" in made.verdict
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(plain(input_ids=token_ids()).logits, logits(lm))
    assert read(tmp_path / "out", Equivalence) == made
    assert sf.read(tmp_path / "out") == made
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model:" in card
    assert "What rounding costs" in card
    again = equalize(lm, tmp_path / "out", findings=findings, formats=formats, **asked(text))
    assert to_json(again) == to_json(made)


def test_a_key_biased_model_gains_in_its_cache_and_says_up_to_which_context(tmp_path, text) -> None:
    lm = replace(biased(), tokenizer=tokenizer())
    made = equalize(lm, tmp_path / "out", context=32, formats=(), **asked(text))
    assert {change.kind for change in made.changes} == {"key bias"}
    assert made.context == 32
    assert json.loads((tmp_path / "out" / "config.json").read_text())["max_position_embeddings"] == 32
    assert all(0 < check.largest < 1e-3 and not check.equal for check in made.checks)
    gains = {gain.stored_as: gain for gain in made.gains}
    assert gains["KV int8"].less.low > 0
    assert any("--findings" in note for note in made.notes)
    assert not lm.model.get_parameter("model.layers.0.self_attn.k_proj.bias").isnan().any()


def test_where_nothing_is_to_gain_nothing_is_written(tmp_path, text) -> None:
    lm = replace(tiny("llama"), tokenizer=tokenizer())
    made = equalize(lm, tmp_path / "out", **asked(text))
    assert not made.changes
    assert "nothing to gain" in made.verdict
    assert not (tmp_path / "out").exists()


def test_what_is_not_the_same_is_refused(tmp_path, text) -> None:
    lm = replace(biased(), tokenizer=tokenizer())
    with pytest.raises(StudfinderError, match="is not the same"):
        equalize(lm, tmp_path / "out", bound=1e6, most=1e-9, formats=(), **asked(text))
    assert not (tmp_path / "out").exists()
    for wrong, message in (
        ({"only": ("rows",)}, "called 'rows'"),
        ({"formats": ("16",)}, "round every number"),
        ({"target": "16"}, "rounds nothing"),
        ({"context": 10**9}, "the model's own limit"),
        ({"findings": findings_for(tiny("llama", seed=9), [(DOWN, (3, 4), "proven")])}, "findings"),
    ):
        with pytest.raises(StudfinderError, match=message):
            equalize(lm, tmp_path / "out", **{**asked(text), **wrong})


def test_the_command_line(tmp_path, text, capsys) -> None:
    lm = spiked()
    lm.model.save_pretrained(tmp_path / "m")
    tokenizer().save_pretrained(tmp_path / "m")
    (tmp_path / "findings.json").write_text(to_json(findings_for(lm, [(DOWN, (3, 4), "proven")])))
    command = ["equalize", str(tmp_path / "m"), "--findings", str(tmp_path / "findings.json"), "--context", "32"]
    command += ["--calibration", str(text), "--samples", "3", "--length", "24", "--text", str(text), "--limit", "4"]
    command += ["--lengths", "24", "--formats", "int4-channel-zero"]
    assert run_cli([*command, "--dry-run"]) == 0
    assert "would change" in capsys.readouterr().out
    assert run_cli([*command, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "What rounding costs" in said
    assert str(tmp_path / "out") in said
    assert run_cli([*command, "--out", str(tmp_path / "out")]) == 0  # it is there
    assert run_cli(["equalize", str(tmp_path / "m"), "--only", "rows"]) == 2
    assert math.isfinite(read(tmp_path / "out", Equivalence).checks[0].largest)
    assert load(tmp_path / "out").model.dtype == torch.float32

"""GGUF files: what the metadata says is honoured and verified, or refused by name; every tensor has its place."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from gguf_files import described, tensors_of, write_gguf
from studfinder.errors import StudfinderError
from studfinder.models import LM, gguf, load
from studfinder.models.gguf_rope import check_rope, rope_of
from tiny import CONFIGS, tiny, token_ids

TOKENS = token_ids(1, 40)
FEW_AND_MANY = pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.deep)])


def read(path) -> LM:
    return load(path, dtype="float32")


def same(path, model) -> bool:
    """Whether a file reads as this model: bit-equal logits, but for factors that were rounded to fp32."""
    with torch.no_grad():
        return torch.allclose(read(path).model(TOKENS).logits, model(TOKENS).logits, rtol=0, atol=1e-5)


def with_rope(**rope):
    """A small llama with 16 pairs of dims a head."""
    config = {**CONFIGS["llama"], "hidden_size": 128, "num_hidden_layers": 1, "max_position_embeddings": 4096}
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **config, rope_parameters={"rope_theta": 10_000.0, **rope})
    return AutoModelForCausalLM.from_config(config).eval()


def said_of(config) -> tuple[dict, dict[str, np.ndarray]]:
    """What llama.cpp's converter writes of a config's rope: metadata, and factor tensors."""
    rope, kind = config.rope_parameters, config.rope_parameters["rope_type"]
    fields = {"rope.freq_base": float(rope["rope_theta"])}
    if kind == "linear":
        return {**fields, "rope.scaling.type": "linear", "rope.scaling.factor": rope["factor"]}, {}
    if kind == "yarn":
        fields |= {"rope.scaling.type": "yarn", "rope.scaling.factor": rope["factor"]}
        fields |= {f"rope.scaling.yarn_{k}": float(rope[k]) for k in ("beta_fast", "beta_slow") if k in rope}
        if "attention_factor" in rope:
            fields["rope.scaling.attn_factor"] = rope["attention_factor"] / (1 + 0.1 * float(np.log(rope["factor"])))
        return {**fields, "rope.scaling.original_context_length": rope["original_max_position_embeddings"]}, {}
    if kind == "llama3":
        head_dim = config.head_dim
        plain = rope["rope_theta"] ** -(np.arange(0, head_dim, 2) / head_dim)
        original, low, high = (
            rope["original_max_position_embeddings"],
            rope["low_freq_factor"],
            rope["high_freq_factor"],
        )
        share = np.clip((original * plain / (2 * np.pi) - low) / (high - low), 0, 1)
        return fields, {"rope_freqs.weight": (1 / ((1 - share) / rope["factor"] + share)).astype(np.float32)}
    if kind == "longrope":
        tensors = {f"rope_factors_{n}.weight": np.array(rope[f"{n}_factor"], np.float32) for n in ("short", "long")}
        fields |= {"rope.scaling.attn_factor": rope["attention_factor"], "rope.scaling.type": "longrope"}
        return {**fields, "rope.scaling.original_context_length": rope["original_max_position_embeddings"]}, tensors
    return fields, {}


def drawn_rope(draw: random.Random, kind: str) -> dict:
    """Rope parameters of a kind."""
    rope = {"rope_type": kind, "rope_theta": draw.choice([1e4, 1e5, 5e5, 1e6])}
    if kind in ("linear", "yarn", "llama3"):
        rope["factor"] = draw.choice([2.0, 4.0, 8.0, 32.0, 2.5])
    if kind in ("yarn", "llama3", "longrope"):
        rope["original_max_position_embeddings"] = draw.choice([512, 2048, 4096, 8192, 32768])
    if kind == "yarn" and draw.random() < 0.5:
        rope |= {"beta_fast": draw.choice([16, 32, 64]), "beta_slow": draw.choice([1, 2])}
    if kind == "yarn" and draw.random() < 0.3:
        rope["attention_factor"] = draw.choice([1.0, 1.5])
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": draw.choice([4.0, 2.0, 8.0, 3.5])}
    if kind == "longrope":
        pairs = 16
        for name in ("short_factor", "long_factor"):
            rope[name] = np.array([draw.uniform(1, 20) for _ in range(pairs)], np.float32).tolist()
        rope["attention_factor"] = draw.choice([1.0, 1.19])
    return rope


class Rotated(torch.nn.Module):
    """A model that is only its rotary part."""

    def __init__(self, config) -> None:
        super().__init__()
        self.rotary_emb = LlamaRotaryEmbedding(config)


@pytest.mark.parametrize("kind", ["default", "linear", "yarn", "llama3", "longrope"])
@FEW_AND_MANY
def test_every_rope_scaling_is_read_as_it_was_meant(kind, count):
    draw, unscaled, read_as = random.Random(kind), 0, 0
    for _ in range(count):
        base = {**CONFIGS["llama"], "head_dim": 32, "max_position_embeddings": 65536}
        meant = AutoConfig.for_model("llama", **base, rope_parameters=drawn_rope(draw, kind))
        fields, tensors = said_of(meant)
        try:
            rope = rope_of("file", fields, {n: torch.from_numpy(t) for n, t in tensors.items()}, 32)
        except StudfinderError:  # a corner may not be honoured, but is not passed over
            continue
        read_as += 1
        made = Rotated(AutoConfig.for_model("llama", **base, rope_parameters=dict(rope.parameters)))
        check_rope("file", made, rope)
        target = Rotated(meant).rotary_emb
        assert torch.allclose(made.rotary_emb.inv_freq / target.inv_freq, torch.ones(16), rtol=0, atol=2e-6)
        assert made.rotary_emb.attention_scaling == pytest.approx(target.attention_scaling, rel=1e-6)
        plain = meant.rope_parameters["rope_theta"] ** -(torch.arange(16) / 16)
        unscaled += bool(torch.allclose(plain, target.inv_freq, rtol=1e-3) and target.attention_scaling == 1)
    assert read_as >= 0.95 * count
    assert kind == "default" or unscaled <= 0.1 * count, "without the scaling, at least nine in ten would be wrong"


@pytest.mark.parametrize("kind", ["default", "linear", "yarn", "llama3", "longrope"])
def test_a_whole_file_of_each_rope_scaling(tmp_path, kind):
    rope = drawn_rope(random.Random(kind + "file"), kind)
    model = with_rope(**rope)
    fields, tensors = said_of(model.config)
    path = write_gguf(tmp_path / "m.gguf", {**described(model), **fields}, {**tensors_of(model), **tensors})
    assert same(path, model)
    lm = read(path)
    lm.model.save_pretrained(tmp_path / "saved")  # what was read survives
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "saved").model(TOKENS).logits, lm.model(TOKENS).logits)
    if kind != "default":
        plain = write_gguf(tmp_path / "p.gguf", described(model), tensors_of(model))
        assert not same(plain, model)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma2"])
def test_each_architecture_reads_as_it_was(tmp_path, architecture):
    model = tiny(architecture).model
    fields, tensors = described(model, architecture), tensors_of(model, architecture)
    assert same(write_gguf(tmp_path / "m.gguf", fields, tensors, architecture), model)


def test_local_and_global_rope_are_told_apart(tmp_path):
    full = {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
    local = {"rope_type": "default", "rope_theta": 1e4}
    rope = {"full_attention": full, "sliding_attention": local}
    torch.manual_seed(0)
    config = {**CONFIGS["gemma3_text"], "num_hidden_layers": 7}  # every sixth layer is global
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma3_text", **config, rope_parameters=rope)).eval()
    fields, tensors = described(model, "gemma3"), tensors_of(model, "gemma3")
    assert same(write_gguf(tmp_path / "m.gguf", fields, tensors, "gemma3"), model)
    unscaled = {key: value for key, value in fields.items() if "scaling" not in key}
    assert not same(write_gguf(tmp_path / "m.gguf", unscaled, tensors, "gemma3"), model)


@pytest.fixture(scope="module")
def llama():
    model = tiny("llama").model
    return model, described(model), tensors_of(model)


@FEW_AND_MANY
def test_each_tensor_that_is_missing_is_named(tmp_path, llama, count):
    _, fields, tensors = llama
    for gone in [*tensors][-1 - count // 10 :]:  # of the last block and after it, or all
        path = write_gguf(tmp_path / "m.gguf", fields, {name: t for name, t in tensors.items() if name != gone})
        if gone == "output.weight":  # llama.cpp takes the embedding
            assert "the head is the embedding" in read(path).source.notes[0]
            continue
        with pytest.raises(StudfinderError, match=f"lacks 1 of 30 tensors, which would be random \\({gone}\\)"):
            read(path)


@FEW_AND_MANY
def test_each_tensor_of_another_size_or_name_is_named(tmp_path, llama, mistake, count):
    _, fields, tensors = llama
    draw = random.Random(0)
    for name in draw.sample(sorted(tensors), count // 15):
        cut = {**tensors, name: np.ascontiguousarray(tensors[name][:-1])}
        assert name in mistake("scan", write_gguf(tmp_path / "m.gguf", fields, cut))
        renamed = {(f"{n}x" if n == name else n): t for n, t in tensors.items()}
        assert name in mistake("scan", write_gguf(tmp_path / "m.gguf", fields, renamed))
        more = {**tensors, f"blk.0.extra_{name}": tensors[name]}
        assert "extra_" in mistake("scan", write_gguf(tmp_path / "m.gguf", fields, more))
    turned = {**tensors, "blk.0.ffn_up.weight": np.ascontiguousarray(tensors["blk.0.ffn_up.weight"].T)}
    assert "32 x 48, but the model wants 48 x 32" in mistake("scan", write_gguf(tmp_path / "m.gguf", fields, turned))


REFUSED = {
    "attention.scale": 0.1,
    "attn_logit_softcapping": 30.0,
    "final_logit_softcapping": 30.0,
    "attention.sliding_window": 7,
    "attention.causal": False,
    "attention.clamp_kqv": 8.0,
    "attention.max_alibi_bias": 8.0,
    "attention.value_length": 16,
    "attention.key_length": 16,
    "attention.key_length_mla": 16,
    "attention.head_count_kv": [2, 1, 2],
    "feed_forward_length": [48, 32, 48],
    "expert_count": 4,
    "expert_used_count": 2,
    "logit_scale": 2.0,
    "residual_scale": 0.5,
    "embedding_scale": 12.0,
    "pooling_type": 1,
    "rope.dimension_count": 4,
    "rope.scaling.type": "su",
    "rope.scaling.attn_factor": 2.0,
    "rope.scaling.yarn_log_multiplier": 0.1,
    "something.new": 3,
    "block_count": 2,
    "embedding_length": 64,
    "vocab_size": 97,
    "general.type": "adapter",
    "adapter.type": "lora",
    "split.count": 3,
    "clip.has_vision_encoder": True,
}


@pytest.mark.parametrize("key", REFUSED)
def test_metadata_that_the_class_does_not_compute_is_refused(tmp_path, llama, mistake, key):
    _, fields, tensors = llama
    mistake("scan", write_gguf(tmp_path / "m.gguf", {**fields, key: REFUSED[key]}, tensors))


HONOURED = {
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", 1e-2),
    "rope.freq_base": ("rope_theta", 500.0),
    "context_length": ("max_position_embeddings", 77),
}


@pytest.mark.parametrize("key", HONOURED)
def test_metadata_that_the_class_computes_is_honoured(tmp_path, llama, key):
    model, fields, tensors = llama
    name, value = HONOURED[key]
    lm = read(write_gguf(tmp_path / "m.gguf", {**fields, key: value}, tensors))
    config = lm.model.config
    found = config.rope_parameters[name] if name == "rope_theta" else getattr(config, name)
    assert found == pytest.approx(value)
    with torch.no_grad():
        assert torch.equal(lm.model(TOKENS).logits, model(TOKENS).logits) is (key == "context_length")


def test_a_file_of_images_is_said_to_be_one(tmp_path, llama, mistake):
    assert "mmproj" in mistake("scan", write_gguf(tmp_path / "m.gguf", {}, llama[2], "clip"))


def test_factors_that_no_scaling_gives_are_refused(tmp_path, mistake):
    model = with_rope()
    factors = {"rope_freqs.weight": np.linspace(1, 5, 16, dtype=np.float32) ** 2}
    path = write_gguf(tmp_path / "m.gguf", described(model), {**tensors_of(model), **factors})
    assert "rope_freqs (1 to 25) that no Llama 3 scaling gives" in mistake("scan", path)


def test_without_the_check_of_tensors_a_missing_one_is_silent(tmp_path, llama, monkeypatch):
    from studfinder.models.loading import Judgement

    model, fields, tensors = llama
    monkeypatch.setattr(gguf, "_check_tensors", lambda *_: None)
    monkeypatch.setattr(gguf, "judge", lambda *_: Judgement())
    draw, wrong = random.Random(0), 0
    for gone in draw.sample(sorted(set(tensors) - {"output.weight"}), 3):
        wrong += not same(
            write_gguf(tmp_path / "m.gguf", fields, {name: t for name, t in tensors.items() if name != gone}), model
        )
    assert wrong == 3

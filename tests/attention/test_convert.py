"""convert, saving and loading, and what is refused, each with its reason."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
from attention_models import BASES, tiny, tokens
from test_models import ALL, CLOSE, model_with
from transformers import AutoModelForCausalLM

import studfinder.attention as sa
from studfinder.attention.saved import config_class, model_class
from studfinder.attention.variant import VARIANTS, variant_from
from studfinder.errors import StudfinderError
from studfinder.models import LM, anatomy_of, load


@pytest.mark.parametrize("name", ALL)
def test_save_load_generate(name: str, tmp_path) -> None:
    model, ids = model_with(name), tokens(2, 6)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "studfinder-llama"
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert type(again) is type(model)
    assert torch.equal(again(ids).logits, model(ids).logits)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(again.generate(ids, **options), model.generate(ids, **options))


@pytest.mark.parametrize("base", BASES)
def test_every_base_is_saved_under_its_own_name(base: str, tmp_path) -> None:
    model = model_with("shift + clip + gate", base, dtype=torch.float32)  # Gemma's embedding scale is fp32
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config.model_type == f"studfinder-{base}"
    assert torch.equal(again(tokens()).logits, model(tokens()).logits)
    assert load(str(tmp_path)).anatomy.architecture.removeprefix("studfinder-") == base


@pytest.mark.real
def test_plain_transformers_names_what_is_missing(tmp_path) -> None:
    model_with("kv_shift").save_pretrained(tmp_path)
    code = f"from transformers import AutoModelForCausalLM as A; A.from_pretrained({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "studfinder-llama" in done.stderr
    code = "import studfinder.attention; " + code
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0


@pytest.mark.real
def test_sf_load_needs_no_other_import(tmp_path) -> None:
    """In a fresh process: the lower room alone does not know the variant, the public name does."""
    model = model_with("kv_shift")
    model.save_pretrained(tmp_path)
    torch.save(model(tokens()).logits, tmp_path / "logits.pt")
    code = f"""
import sys, torch, studfinder as sf
from studfinder.models import load
try:
    load({str(tmp_path)!r})
except sf.StudfinderError as error:
    assert "studfinder-llama" in str(error), error
else:
    raise AssertionError("models.load knew the variant, so this test shows nothing")
lm = sf.load({str(tmp_path)!r})
assert type(lm.model).__name__ == "StudfinderLlamaForCausalLM"
assert torch.equal(lm.model(torch.tensor({tokens().tolist()})).logits, torch.load({str(tmp_path / "logits.pt")!r}))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_lm_is_changed_in_place_and_returned() -> None:
    model = tiny()
    lm = LM(model, None, anatomy_of(model))
    assert sa.convert(lm, sa.KVShift()) is lm
    assert lm.model is model
    assert anatomy_of(lm.model).layers == lm.anatomy.layers


def test_a_shared_config_is_left_alone() -> None:
    model = tiny()
    other = type(model)(model.config)
    sa.convert(model, sa.Softpick(), init="fresh")
    assert other.config.model_type == "llama"
    assert other.config._attn_implementation == "sdpa"


def test_every_variant_round_trips_through_json() -> None:
    named = {variant.name for entries in ALL.values() for variant, _ in entries}
    assert named == set(VARIANTS)
    for entries in ALL.values():
        for variant, init in entries:
            variant = variant.started(init)
            assert variant_from(json.loads(json.dumps(variant.to_dict()))) == variant
    with pytest.raises(StudfinderError, match="no attention variant"):
        variant_from({"name": "other"})


@pytest.mark.parametrize(
    "variant",
    [
        sa.ClippedSoftmax(gamma=-0.1),
        sa.Softpick(),
        sa.SoftmaxOne(),
        sa.SinkLogit(),
        sa.AttentionBias(),
        sa.Differential(),
        sa.NoPE(),
        sa.ALiBi(),
        sa.RoPE(fraction=0.5),
        sa.KVShift(gated=True),
    ],
    ids=lambda variant: variant.name,
)
def test_no_silent_start_where_there_is_no_identity(variant) -> None:
    model = tiny()
    with pytest.raises(StudfinderError, match="init= said aloud"):
        sa.convert(model, variant)
    assert model.config.model_type == "llama"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: sa.ClippedSoftmax(gamma=0.1), "gamma=0.1"),
        (lambda: sa.ClippedSoftmax(gamma=float("nan")), "gamma=nan"),
        (lambda: sa.ClippedSoftmax(gamma=-0.1, zeta=0.9), "zeta=0.9"),
        (lambda: sa.ClippedSoftmax(), "gamma or alpha"),
        (lambda: sa.ClippedSoftmax(gamma=-0.1, alpha=4), "gamma or alpha"),
        (lambda: sa.ClippedSoftmax(alpha=4), "training length"),
        (lambda: sa.ClippedSoftmax(alpha=4, length=9, per_row=True), "not both"),
        (lambda: sa.ClippedSoftmax(gamma=-0.1, per_row=True), "per_row needs alpha"),
        (lambda: sa.ClippedSoftmax(gamma=-0.1, length=9), "length=9"),
        (lambda: sa.KVShift(init="ones"), "'identity' or 'paper'"),
        (lambda: sa.KVShift(gated=True, init="identity"), "no gradient"),
        (lambda: sa.Gated(kind="per-head"), "unknown"),
        (lambda: sa.Gated(kind="all-heads", pi_init=1.0), "pi_init=1.0"),
        (lambda: sa.Gated(kind="headwise", pi_init=0.25), "no bias"),
        (lambda: sa.Gated(kind="all-heads", pi_init=0.25, init="identity"), "1/2"),
        (lambda: sa.Gated(kind="linear", hidden=3), "kind='mlp'"),
        (lambda: sa.RoPE(fraction=0.0), "NoPE"),
        (lambda: sa.RoPE(kind="partial", fraction=0.4), "1/2"),
    ],
)
def test_bad_settings(make, says: str) -> None:
    with pytest.raises(StudfinderError, match=says):
        make()


def test_odd_head_dims_for_differential() -> None:
    odd = tiny("gpt2", n_embd=12)
    with pytest.raises(StudfinderError, match="heads of 3 dims"):
        sa.convert(odd, sa.Differential(init="fresh"))


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        (sa.KVShift(), sa.KVShift(), "both change the keys and values"),
        (sa.Softpick(init="fresh"), sa.SoftmaxOne(init="fresh"), "both change the weights"),
        (sa.Softpick(init="fresh"), sa.ALiBi(init="fresh"), "its own attention function"),
        (sa.Differential(init="fresh"), sa.Softpick(init="fresh"), "two plain softmaxes"),
        (sa.ALiBi(init="fresh"), sa.Differential(init="fresh"), "two plain softmaxes"),
        (sa.NoPE(init="fresh"), sa.ALiBi(init="fresh"), "both change the positions"),
    ],
)
def test_refused_combinations(first, second, says: str) -> None:
    model = sa.convert(tiny(), first)
    weights = {n: p.clone() for n, p in model.named_parameters()}
    with pytest.raises(StudfinderError, match=says):
        sa.convert(model, second)
    assert dict.fromkeys(weights, True) == {n: torch.equal(p, weights[n]) for n, p in model.named_parameters()}


def test_refused_models() -> None:
    from transformers import LlamaModel

    with pytest.raises(StudfinderError, match="expected a causal LM"):
        sa.convert(LlamaModel(tiny().config), sa.KVShift())
    with pytest.raises(StudfinderError, match="no rotary positions"):
        sa.convert(tiny("gpt2"), sa.NoPE(), init="fresh")
    with pytest.raises(StudfinderError, match="query projection"):
        sa.convert(tiny("opt"), sa.Differential(), init="fresh")
    with pytest.raises(StudfinderError, match=r"more than a softmax over the keys \(it is given softcap\)"):
        sa.convert(tiny("gemma2", attn_logit_softcapping=30.0), sa.Softpick(), init="fresh")
    with pytest.raises(StudfinderError, match="lm is 'smollm2'; expected LM"):
        sa.convert("smollm2", sa.KVShift())


def test_an_own_weight_function_is_not_replaced_by_softmax(tmp_path) -> None:
    model = model_with("softpick")
    with pytest.raises(StudfinderError, match="plain softmax"):
        model.set_attn_implementation("eager")
    model.save_pretrained(tmp_path)
    asked = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64, attn_implementation="eager").eval()
    torch.testing.assert_close(asked(tokens()).logits, model(tokens()).logits, **CLOSE)


def test_attention_dropout_is_refused_not_ignored() -> None:
    model = model_with("softpick", attention_dropout=0.1).train()
    with pytest.raises(StudfinderError, match="attention_dropout=0"):
        model(tokens())


def test_plain_weights_get_the_starts_the_config_names(tmp_path) -> None:
    """A plain checkpoint loaded into a variant's class: the parts it lacks are started, not left unset."""
    plain = tiny()
    config_class(type(plain.config))  # registers both
    made = model_class(type(plain))
    plain.save_pretrained(tmp_path)
    config = made.config_class(**{k: v for k, v in plain.config.to_dict().items() if k != "model_type"})
    config.studfinder = {"variants": [sa.KVShift().started(None).to_dict()]}
    loaded = made.from_pretrained(tmp_path, config=config, dtype=torch.float64).eval()
    for parameter in loaded.parameters():  # mapped files lie at odd addresses, where sums may round apart
        parameter.data = parameter.data.clone()
    assert torch.equal(loaded(tokens()).logits, plain(tokens()).logits)
    # A checkpoint with some of a part's numbers: those are kept, the others started.
    tensors = {k: v.clone() for k, v in loaded.state_dict().items()}
    tensors["model.layers.1.self_attn.kv_shift.key_previous"] += 0.5
    del tensors["model.layers.1.self_attn.kv_shift.key_current"]
    some = made.from_pretrained(None, config=config, state_dict=tensors, dtype=torch.float64)
    part = some.model.layers[1].self_attn.kv_shift
    assert (part.key_current.tolist(), part.key_previous.tolist()) == ([1, 1], [0.5, 0.5])
    drawn = AutoModelForCausalLM.from_config(config)
    assert drawn.model.layers[0].self_attn.kv_shift.key_current.tolist() == [1, 1]


@pytest.mark.parametrize("base", BASES)
def test_checkpoints_that_do_not_hold_their_places_load(base: str, tmp_path) -> None:
    """As those of before: where the parts go is then measured on a twin of random weights."""
    model = model_with("shift + clip + gate", base, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["studfinder"]["attention"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config.studfinder == model.config.studfinder
    assert torch.equal(again(tokens()).logits, model(tokens()).logits)


def test_a_copy_is_a_model_of_its_own() -> None:
    model = model_with("shift + differential")
    expected = model(tokens()).logits
    other = copy.deepcopy(model)
    assert torch.equal(other(tokens()).logits, expected)
    other.model.layers[0].self_attn.kv_shift.key_current += 1
    assert not torch.equal(other(tokens()).logits, expected)
    assert torch.equal(model(tokens()).logits, expected)


@pytest.mark.parametrize("projection", ["k_proj", "v_proj", "q_proj", "o_proj"])
def test_a_replaced_projection_is_not_passed_over(projection: str) -> None:
    """Its variant would silently do nothing."""
    model = model_with("shift + differential")
    attention = model.model.layers[1].self_attn
    old = getattr(attention, projection)
    setattr(attention, projection, torch.nn.Linear(old.in_features, old.out_features, bias=False).double())
    with pytest.raises((StudfinderError, RuntimeError), match=r"was replaced|shape|size"):
        model(tokens())


def test_a_projection_alone_is_plain() -> None:
    """Whoever asks for a projection outside attention, as quantisers do, gets the matrix's product."""
    model = model_with("kv_shift")
    projection = model.model.layers[0].self_attn.k_proj
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    assert torch.equal(projection(x), x @ projection.weight.T)


def test_two_threads_do_not_meet() -> None:
    from concurrent.futures import ThreadPoolExecutor

    model = model_with("shift + gate")
    texts = [tokens(seed=seed) for seed in range(8)]
    expected = [model(ids).logits for ids in texts]
    with ThreadPoolExecutor(4) as pool, torch.no_grad():
        found = list(pool.map(lambda ids: model(ids).logits, texts * 4))
    assert all(map(torch.equal, found, expected * 4))

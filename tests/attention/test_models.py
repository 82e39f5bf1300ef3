"""Law 7 and law 8 in whole models: every way to run them agrees, and identity starts change nothing."""

from __future__ import annotations

import pytest
import torch
from attention_models import BASES, tiny, tokens
from transformers import DynamicCache

import studfinder.attention as sa

LIST = {
    "kv_shift": (sa.KVShift(), "paper"),
    "kv_shift, keys": (sa.KVShift(values=False), "paper"),
    "kv_shift, gated": (sa.KVShift(gated=True), "paper"),
    "clipped_softmax": (sa.ClippedSoftmax(gamma=-0.05), "fresh"),
    "clipped_softmax, per row": (sa.ClippedSoftmax(alpha=0.5, per_row=True), "fresh"),
    "softpick": (sa.Softpick(), "fresh"),
    "softmax_one": (sa.SoftmaxOne(), "fresh"),
    "sink_logit": (sa.SinkLogit(), "fresh"),
    "attention_bias": (sa.AttentionBias(), "fresh"),
    "differential": (sa.Differential(), "fresh"),
    "gated, linear": (sa.Gated(kind="linear"), "fresh"),
    "gated, mlp": (sa.Gated(kind="mlp"), "fresh"),
    "gated, all-heads": (sa.Gated(kind="all-heads", pi_init=0.25), "fresh"),
    "gated, headwise": (sa.Gated(kind="headwise"), "fresh"),
    "gated, elementwise": (sa.Gated(kind="elementwise"), "fresh"),
    "rope, partial": (sa.RoPE(kind="partial", fraction=0.5), "fresh"),
    "rope, p-rope": (sa.RoPE(kind="p-rope", fraction=0.5), "fresh"),
    "nope": (sa.NoPE(), "fresh"),
    "alibi": (sa.ALiBi(), "fresh"),
}
COMBINED = {
    "shift + gate": [(sa.KVShift(), "paper"), (sa.Gated(), "fresh")],
    "shift + clip + gate": [
        (sa.KVShift(), "paper"),
        (sa.ClippedSoftmax(gamma=-0.05), "fresh"),
        (sa.Gated(kind="mlp"), "fresh"),
    ],
    "shift + sink + p-rope": [
        (sa.KVShift(), "paper"),
        (sa.SinkLogit(), "fresh"),
        (sa.RoPE(fraction=0.5), "fresh"),
    ],
    "shift + differential": [(sa.KVShift(), "paper"), (sa.Differential(), "fresh")],
    "shift + alibi": [(sa.KVShift(), "paper"), (sa.ALiBi(), "fresh")],
}
ALL = {name: [entry] for name, entry in LIST.items()} | COMBINED
CLOSE = {"rtol": 1e-9, "atol": 1e-10}
EAGER = {"rtol": 1e-3, "atol": 1e-5}  # transformers' eager attention takes its softmax in fp32


def model_with(name: str, base: str = "llama", **changes: object):
    """A converted tiny model whose learned numbers are all away from their start."""
    model = tiny(base, **changes)
    for variant, init in ALL[name]:
        sa.convert(model, variant, init=init)
    torch.manual_seed(11)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, sa.Part):
                for parameter in module.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.requires_grad_(False)


def in_pieces(model, ids: torch.Tensor, pieces: list[int]) -> torch.Tensor:
    cache, out, start = DynamicCache(config=model.config), [], 0
    for size in pieces:
        out.append(model(ids[:, start : start + size], past_key_values=cache, use_cache=True).logits)
        start += size
    return torch.cat(out, dim=1)


@pytest.mark.parametrize("name", ALL)
def test_changes_the_model(name: str) -> None:
    """Guards the tests below: agreement of a variant that does nothing would be worthless."""
    difference = (model_with(name)(tokens()).logits - tiny()(tokens()).logits).abs().max()
    assert difference > 1e-3


@pytest.mark.parametrize("name", ALL)
def test_full_is_steps_is_chunks(name: str) -> None:
    """Law 7: full forward = prefill + steps = any chunking."""
    model, ids = model_with(name), tokens()
    full = model(ids, use_cache=False).logits
    for pieces in ([1] * 13, [7, *[1] * 6], [5, 4, 1, 3], [1, 12]):
        torch.testing.assert_close(in_pieces(model, ids, pieces), full, **CLOSE)


@pytest.mark.parametrize("base", ["mistral", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("name", ["kv_shift", "clipped_softmax", "sink_logit", "shift + clip + gate"])
def test_sliding_windows(name: str, base: str) -> None:
    model, ids = model_with(name, base), tokens(length=17)
    full = model(ids, use_cache=False).logits
    for pieces in ([1] * 17, [9, 1, 4, 3]):
        near = EAGER if model.config._attn_implementation == "eager" else CLOSE  # gemma2's default
        torch.testing.assert_close(in_pieces(model, ids, pieces), full, **near)


@pytest.mark.parametrize("name", ALL)
def test_left_padding_changes_nothing(name: str) -> None:
    """Law 7 with left padding."""
    model, ids = model_with(name), tokens(1)
    pad = torch.full((1, 4), 7)
    mask = torch.cat([torch.zeros_like(pad), torch.ones_like(ids)], dim=1)
    both = torch.cat([pad, ids], dim=1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    plain = model(ids).logits
    padded = model(both, attention_mask=mask, position_ids=positions).logits[:, 4:]
    torch.testing.assert_close(padded, plain, **CLOSE)
    # The same when the padded prompt is fed in two pieces, the first of which is padding and one token.
    cache = DynamicCache(config=model.config)
    model(both[:, :5], attention_mask=mask[:, :5], position_ids=positions[:, :5], past_key_values=cache)
    rest = model(both[:, 5:], attention_mask=mask, position_ids=positions[:, 5:], past_key_values=cache)
    torch.testing.assert_close(rest.logits, plain[:, 1:], **CLOSE)


@pytest.mark.parametrize("name", ALL)
def test_right_padding_changes_nothing(name: str) -> None:
    model, ids = model_with(name), tokens(1)
    pad = torch.full((1, 4), 7)
    mask = torch.cat([torch.ones_like(ids), torch.zeros_like(pad)], dim=1)
    got = model(torch.cat([ids, pad], dim=1), attention_mask=mask).logits[:, :13]
    torch.testing.assert_close(got, model(ids).logits, **CLOSE)


@pytest.mark.parametrize("name", ALL)
def test_packed_documents_do_not_leak(name: str) -> None:
    """Law 7 with packed documents."""
    model, ids = model_with(name), tokens(1)
    positions = torch.tensor([[*range(5), *range(6), *range(2)]])
    packed = model(ids, position_ids=positions, use_cache=False).logits
    apart = [model(ids[:, a:b], use_cache=False).logits for a, b in ((0, 5), (5, 11), (11, 13))]
    torch.testing.assert_close(packed, torch.cat(apart, dim=1), **CLOSE)


@pytest.mark.parametrize("name", ALL)
def test_beam_search_is_beam_search_without_a_cache(name: str) -> None:
    """Law 7: beam search without a cache."""
    model, ids = model_with(name), tokens(2, 6)
    options = {
        "max_new_tokens": 7,
        "num_beams": 3,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    assert torch.equal(model.generate(ids, use_cache=True, **options), model.generate(ids, use_cache=False, **options))


@pytest.mark.parametrize("name", ["kv_shift", "shift + clip + gate"])
def test_assisted_decoding_is_greedy_decoding(name: str) -> None:
    """Candidates are rejected on the way, so the cache is cropped."""
    model, assistant = model_with(name), model_with(name, num_hidden_layers=1)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    greedy = model.generate(tokens(1, 6), **options)
    assert torch.equal(model.generate(tokens(1, 6), assistant_model=assistant, **options), greedy)
    assert torch.equal(model.generate(tokens(1, 6), prompt_lookup_num_tokens=3, **options), greedy)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "variants",
    [
        [sa.KVShift()],
        *([sa.Gated(kind=kind)] for kind in ("linear", "mlp", "all-heads", "headwise", "elementwise")),
        [sa.KVShift(), sa.Gated()],
        [sa.Differential(init="copy")],
    ],
    ids=lambda variants: " + ".join(getattr(v, "kind", v.name) for v in variants),
)
def test_identity_starts_are_bit_exact_and_trainable(base: str, dtype: torch.dtype, variants) -> None:
    """Law 8: an identity start is bit-exact and trainable."""
    if base in ("gpt2", "opt") and isinstance(variants[0], sa.Differential):
        pytest.skip("refused, see test_convert.py")
    model, ids = tiny(base, dtype), tokens()
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    before = [model(ids, use_cache=False).logits, model(ids, attention_mask=mask).logits]
    for variant in variants:
        sa.convert(model, variant)
    after = [model(ids, use_cache=False).logits, model(ids, attention_mask=mask).logits]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old, new)
    model(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        hidden = name.endswith(("weight_in", "bias_in"))  # gets its gradient once the layer behind it has moved
        if any(f".{variant.name}." in name for variant in variants) and not hidden:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("name", ["kv_shift", "clipped_softmax", "softpick", "sink_logit", "shift + clip + gate"])
@pytest.mark.parametrize("base", BASES)
def test_every_base_runs(name: str, base: str) -> None:
    model, ids = model_with(name, base), tokens()
    full = model(ids, use_cache=False).logits
    near = EAGER if model.config._attn_implementation == "eager" else CLOSE
    torch.testing.assert_close(in_pieces(model, ids, [5, 1, 7]), full, **near)


@pytest.mark.parametrize("name", ALL)
def test_gradient_checkpointing(name: str) -> None:
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        model = model_with(name).requires_grad_(True).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(tokens(), labels=tokens(), use_cache=False).loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    plain, again = gradients(False), gradients(True)
    assert plain.keys() == again.keys()
    assert any("self_attn" in n for n in plain)
    for n in plain:
        torch.testing.assert_close(plain[n], again[n], **CLOSE)


@pytest.mark.parametrize("name", ALL)
def test_bf16_is_near_fp32(name: str) -> None:
    wide = model_with(name).float()
    narrow = model_with(name).bfloat16()
    a, b = wide(tokens()).logits, narrow(tokens()).logits.float()
    assert (a - b).norm() < 0.1 * a.norm()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # from within the tracer
@pytest.mark.parametrize("name", ["shift + clip + gate", "sink_logit"])
@pytest.mark.real
def test_compiled_is_eager(name: str) -> None:
    model, ids = model_with(name, num_hidden_layers=1), tokens()
    expected = model(ids, use_cache=False).logits
    compiled = torch.compile(model, backend="aot_eager")  # the graph without a C++ compiler
    torch.testing.assert_close(compiled(ids, use_cache=False).logits, expected, **CLOSE)
    model.requires_grad_(True)
    compiled(ids, labels=ids, use_cache=False).loss.backward()
    got = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model(ids, labels=ids, use_cache=False).loss.backward()
    for n, gradient in got.items():
        torch.testing.assert_close(gradient, model.get_parameter(n).grad, **CLOSE)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["kv_shift", "gated, headwise", "differential", "shift + differential"])
def test_module_variants_run_on_any_implementation(name: str, attention: str) -> None:
    model = model_with(name)
    expected = model(tokens()).logits
    model.set_attn_implementation(attention)
    near = EAGER if attention == "eager" else CLOSE
    torch.testing.assert_close(model(tokens()).logits, expected, **near)
    model.float()  # in fp64 transformers' own eager attention makes NaN of padding
    mask = torch.ones(2, 13, dtype=torch.long)
    mask[0, :4] = 0
    model.set_attn_implementation("sdpa")
    expected = model(tokens(), attention_mask=mask).logits[0, 4:]
    model.set_attn_implementation(attention)
    torch.testing.assert_close(model(tokens(), attention_mask=mask).logits[0, 4:], expected, **EAGER)

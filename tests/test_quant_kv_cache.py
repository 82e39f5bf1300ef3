"""A KV cache in few bits: what is rounded, what is kept, what a constant taken from all keys may do."""

from __future__ import annotations

import pytest
import torch

import studfinder.attention as sa
from studfinder.errors import StudfinderError
from studfinder.quantizers.kv_cache import KVCache, cached, key_means, quantized_cache
from studfinder.sites import AttentionCall, tapped
from tiny import D, prompts, tiny, token_ids

INT4 = KVCache(element="int4")


def keys(tokens: int = 20, seed: int = 0) -> torch.Tensor:
    """Random keys with a massive constant in two dims."""
    x = torch.randn(2, 3, tokens, 8, generator=torch.Generator().manual_seed(seed))
    x[..., 2] += 40
    x[..., 5] -= 25
    return x


@torch.no_grad()
def logits(lm, ids=None):
    return lm.model(token_ids() if ids is None else ids).logits


def test_per_token_and_per_channel():
    x = keys()
    config = KVCache(element="int8", zero="none", run=8)
    step = (x.abs().amax(-1, keepdim=True) / 127).half().float()
    torch.testing.assert_close(cached(x, config, "token"), (x / step).round() * step)
    made = cached(x, config, "channel")
    for start in (0, 8):
        part = x[:, :, start : start + 8]
        step = (part.abs().amax(2, keepdim=True) / 127).half().float()
        torch.testing.assert_close(made[:, :, start : start + 8], (part / step).round().clamp(-127, 127) * step)
    assert torch.equal(made[:, :, 16:], x[:, :, 16:])  # a run that is not full yet


def test_massive_constants_cost_a_token_scale_more_than_a_channel_scale_or_a_centred_one():
    x = keys(32)
    error = {scope: (cached(x, INT4, scope) - x).norm() for scope in ("token", "channel")}
    centre = x.mean(dim=2, keepdim=True)
    centred = (cached(x - centre, INT4, "token") + centre - x).norm()
    assert error["channel"] < 0.3 * error["token"]
    assert centred < 0.3 * error["token"]


def test_first_positions_and_held_dims_are_kept():
    x = keys()
    config = KVCache(element="int2", first=3, run=4)
    for scope in ("token", "channel"):
        made = cached(x, config, scope)
        assert torch.equal(made[:, :, :3], x[:, :, :3])
        assert not torch.equal(made[:, :, 3:], x[:, :, 3:])
        assert torch.equal(cached(x, config, scope, start=1)[:, :, :2], x[:, :, :2])
        later = cached(x, config, scope, start=3)
        assert not torch.equal(later[:, :, :1], x[:, :, :1])
    held = torch.zeros(3, 8, dtype=torch.bool)
    held[:, [2, 5]] = True
    made = cached(x, INT4, "token", held_GD=held)
    assert torch.equal(made[..., [2, 5]], x[..., [2, 5]])
    rest = [0, 1, 3, 4, 6, 7]
    assert (made - x)[..., rest].norm() < 0.3 * (cached(x, INT4, "token") - x)[..., rest].norm()


def test_bits_are_true():
    assert KVCache(element="int4", zero="none").bits(64, 100) == 4 + 16 / 64
    assert KVCache(element="int4", zero="float").bits(64, 100) == 4 + 32 / 64
    assert KVCache(element="int8", zero="none", first=1).bits(64, 2) == (8 + 16 / 64 + 16) / 2
    channel = KVCache(element="int4", zero="none", keys="channel", values="channel", run=32)
    assert channel.bits(64, 64) == 4 + 16 / 32
    assert channel.bits(64, 31) == 16
    assert KVCache(element="int4", zero="none").bits(64, 100, held=64) == ((4 + 16 / 64) + 16 + 16 / 64) / 2


@pytest.mark.parametrize(
    "config",
    [
        KVCache(),
        KVCache(element="int4", keys="channel", run=4, first=1),
        KVCache(element="fp8", zero="none", rope="pre"),
        KVCache(element="int4", rope="pre", keys="channel", run=4, zero="integer"),
    ],
    ids=str,
)
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "phi"])
def test_a_model_is_changed_and_put_back(architecture, config):
    lm = tiny(architecture)
    before = logits(lm)
    with quantized_cache(lm, config):
        changed = logits(lm)
    with pytest.raises(RuntimeError), quantized_cache(lm, config):
        raise RuntimeError
    assert not torch.equal(changed, before)
    assert (changed - before).norm() < 0.5 * before.norm()
    assert torch.equal(logits(lm), before)
    assert not lm.model._forward_pre_hooks


def test_step_by_step_is_as_at_once():
    lm, ids = tiny("llama"), token_ids(2, 12)
    for config in (KVCache(element="int4", first=1), KVCache(element="int4", first=2, rope="pre")):
        with quantized_cache(lm, config), torch.no_grad():
            whole = lm.model(ids).logits
            out = lm.model(ids[:, :5], use_cache=True)
            parts = [out.logits]
            for t in range(5, 12):
                out = lm.model(ids[:, t : t + 1], past_key_values=out.past_key_values, use_cache=True)
                parts.append(out.logits)
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)
    with quantized_cache(lm, KVCache(rope="pre", keys="channel")), torch.no_grad():
        out = lm.model(ids[:, :5], use_cache=True)
        with pytest.raises(StudfinderError, match="reach over several calls"):
            lm.model(ids[:, 5:6], past_key_values=out.past_key_values, use_cache=True)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_constant_taken_from_all_keys_changes_no_logit(attention):
    lm = tiny("llama", attention=attention)
    ids = token_ids()
    before = logits(lm, ids)
    constant = torch.randn(1, 2, 1, D, generator=torch.Generator().manual_seed(0)) * 5
    from studfinder.sites import Site

    replace = {Site("key", layer): lambda key: key - constant for layer in range(3)}
    with tapped(lm, replace=replace):
        torch.testing.assert_close(logits(lm, ids), before, rtol=1e-4, atol=1e-5)


def with_massive_keys():
    lm = tiny("qwen2")
    with torch.no_grad():
        for layer in range(
            3
        ):  # dim 3 and 7 of a head rotate together; the slowest pair of this head is nearly constant
            attention = lm.model.get_submodule(f"model.layers.{layer}.self_attn")
            attention.k_proj.bias[[3, 11]] = 30.0
            attention.q_proj.weight.mul_(50)  # so that attention depends on the small dims
    return lm


def test_dropped_or_added_centres_help_alike():
    lm, ids = with_massive_keys(), token_ids(3, 30)
    before, windows = logits(lm, ids), prompts((30, 30, 25))
    errors = {}
    for config in (
        INT4,
        KVCache(element="int4", centre="added"),
        KVCache(element="int4", centre="dropped"),
        KVCache(element="int4", centre="added", rope="pre"),
    ):
        with quantized_cache(lm, config, windows=windows):
            errors[config.centre, config.rope] = float((logits(lm, ids) - before).norm())
    plain = errors.pop(("none", "post"))
    assert all(error < 0.7 * plain for error in errors.values()), (plain, errors)
    assert errors["dropped", "post"] == pytest.approx(errors["added", "post"], rel=1e-2)
    assert torch.equal(logits(lm, ids), before)


def test_means_leave_the_first_token_and_padding_out():
    lm, windows = tiny("llama"), prompts((9, 6))
    sums = []
    with torch.no_grad(), tapped(lm, read={AttentionCall: (lambda call: sums.append((call.layer, call.key_BGSD)),)}):
        for window in windows:
            lm.model(torch.tensor([window]))
    layer0 = torch.cat([key[0, :, 1:] for layer, key in sums if layer == 0], dim=1)
    torch.testing.assert_close(key_means(lm, windows)[0], layer0.mean(dim=1))


def test_where_a_constant_is_seen_it_is_not_dropped():
    dropped, windows = KVCache(centre="dropped"), prompts()
    soft = tiny("gemma2")
    sinks = tiny("gpt_oss")
    for lm, what in ((soft, "soft cap"), (sinks, "sink logit")):
        with pytest.raises(StudfinderError, match=what):
            with quantized_cache(lm, dropped, windows=windows):
                pass
        with quantized_cache(lm, KVCache(centre="added"), windows=windows):
            logits(lm)
    for variant, init in (
        (sa.SoftmaxOne(), "fresh"),
        (sa.Softpick(), "fresh"),
        (sa.SinkLogit(), "fresh"),
        (sa.AttentionBias(), "fresh"),
    ):
        lm = sa.convert(tiny("llama"), variant, init=init)
        with pytest.raises(StudfinderError, match=variant.name):
            with quantized_cache(lm, dropped, windows=windows):
                pass
    lm = sa.convert(tiny("llama"), sa.ClippedSoftmax(gamma=-0.03), init="fresh")
    with quantized_cache(lm, dropped, windows=windows):
        logits(lm)


def test_bad_input():
    lm = tiny("llama")
    with pytest.raises(StudfinderError, match="calibration text"):
        with quantized_cache(lm, KVCache(centre="added")):
            pass
    with pytest.raises(StudfinderError, match="two tokens or more"):
        with quantized_cache(lm, KVCache(centre="added"), windows=[[5]]):
            pass
    with pytest.raises(StudfinderError, match="rotary"):
        with quantized_cache(tiny("gpt2"), KVCache(rope="pre")):
            pass
    for settings in (
        {"keys": "tensor"},
        {"run": 0},
        {"first": -1},
        {"centre": "dropped", "rope": "pre"},
        {"element": "fp4", "zero": "none"},
        {"element": "fp8"},
        {"element": "int1"},
    ):
        with pytest.raises(StudfinderError):
            KVCache(**settings)

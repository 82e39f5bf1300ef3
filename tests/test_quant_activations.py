"""Rounded activations: what is rounded, what is restored, and nothing left behind."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from patching import rounded_inputs
from scanned import EFFECT, a_scan
from studfinder.errors import StudfinderError
from studfinder.experiments.quantize_transforms import Unrounded
from studfinder.models import load
from studfinder.quantizers import RTN, Scheme, quantized, rounded_stream, targets
from studfinder.quantizers.activations import (
    ActivationScheme,
    Restore,
    WithActivations,
    fake_quantized,
    input_ranges,
    rounded_after,
    super_activations,
    super_channels,
)
from studfinder.quantizers.apply import bench_for
from studfinder.quantizers.products import WithProducts
from studfinder.quantizers.smoothquant import SmoothQuant
from studfinder.sites import Site, capture
from studfinder.training import ModelShape, build_model
from studfinder.verbs.quantize_plan import stored_as
from tiny import C, H, prompts, tiny, token_ids

DOWN = "model.layers.1.mlp.down_proj.weight"
FINE = RTN(scheme=Scheme(element="int8", block="channel", scale="float32"))


def rows(seed: int = 0) -> torch.Tensor:
    return torch.randn(6, 32, generator=torch.Generator().manual_seed(seed))


def test_per_token_int8_is_absmax_over_127():
    x = rows()
    step = x.abs().amax(dim=1, keepdim=True) / 127
    torch.testing.assert_close(fake_quantized(x, ActivationScheme()), (x / step).round() * step)
    whole = x.abs().max() / 127
    torch.testing.assert_close(fake_quantized(x, ActivationScheme(scope="tensor")), (x / whole).round() * whole)


def test_with_a_float_minimum_it_is_the_super_weight_papers():
    x = rows() + 3
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    step = (high - low) / 255
    torch.testing.assert_close(
        fake_quantized(x, ActivationScheme(zero="float")), ((x - low) / step).round() * step + low
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("median", ["token", "tensor", "channel"])
def test_replace_quantise_restore(median, dtype):
    x = rows().to(dtype)
    x[0, 5] = 700.0
    restore = Restore(places=((DOWN, (5, 9)),), ratio=100, median=median)
    config = ActivationScheme(scope="tensor", restore=restore)
    channels = torch.tensor([5, 9])
    made = fake_quantized(x, config, channels)
    assert made.dtype == dtype
    assert made[0, 5] == x[0, 5]
    without = x.float().clone()
    without[0, 5] = {"token": x[0].float().median(), "tensor": x.float().median(), "channel": x[:, 5].float().median()}[
        median
    ]
    expected = fake_quantized(without, ActivationScheme(scope="tensor")).to(dtype)
    expected[0, 5] = x[0, 5]
    assert torch.equal(made, expected)
    naive = fake_quantized(x, ActivationScheme(scope="tensor"))
    assert (made.float() - x.float()).norm() < 0.02 * (naive.float() - x.float()).norm()
    assert super_activations(x.float(), channels, 100).nonzero().tolist() == [[0, 5]]
    assert not super_activations(x.float(), torch.tensor([9]), 100).any()  # only where one may be


def test_hooks_round_what_enters_and_leave_no_trace():
    lm, ids = tiny("llama"), token_ids()
    seen = {}
    module = lm.model.get_submodule("model.layers.1.mlp.down_proj")
    with torch.no_grad():
        before = lm.model(ids).logits
        with rounded_inputs(lm, ActivationScheme(element="int4"), targets(lm)):
            handle = module.register_forward_pre_hook(lambda _m, args: seen.update(x=args[0]))
            changed = lm.model(ids).logits
            handle.remove()
        with pytest.raises(RuntimeError), rounded_inputs(lm, ActivationScheme(element="int4"), targets(lm)):
            raise RuntimeError
        assert torch.equal(lm.model(ids).logits, before)
    assert not torch.equal(changed, before)
    assert all(row.unique().numel() <= 15 for row in seen["x"].reshape(-1, seen["x"].shape[-1]))
    assert not module._forward_pre_hooks


def by_hand(model, ids_1T, bits, first):
    """A llama of ours with inputs and residual stream rounded, written out."""

    def cut(x_1TC):
        rest = x_1TC[:, first:]
        step = rest.abs().max() / (2 ** (bits - 1) - 1)
        return torch.cat([x_1TC[:, :first], (rest / step).round() * step], dim=1)

    def heads(x_1TC):
        return x_1TC.unflatten(-1, (H, -1)).transpose(1, 2)

    x = cut(model.model.embed_tokens(ids_1T))
    turn = model.model.rotary_emb(x, torch.arange(ids_1T.shape[1])[None])
    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        normed = cut(block.input_layernorm(x))
        query, key, value = (heads(normed @ getattr(attention, f"{name}_proj").weight.T) for name in "qkv")
        query, key = apply_rotary_pos_emb(query, key, *turn)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2)
        x = x + cut(mixed) @ attention.o_proj.weight.T
        normed = cut(block.post_attention_layernorm(x))
        inner = F.silu(normed @ mlp.gate_proj.weight.T) * (normed @ mlp.up_proj.weight.T)
        x = cut(x + cut(inner) @ mlp.down_proj.weight.T)
    return model.lm_head(model.model.norm(x))


@torch.no_grad()
@pytest.mark.parametrize("bits", [5, 6, 8])
@pytest.mark.parametrize("first", [0, 1])
def test_the_residual_stream_is_rounded_too(bits, first):
    shape = ModelShape(layers=2, hidden=32, heads=H)
    lm = load(build_model(shape, [], vocabulary=64, length=16, seed=0))
    with torch.no_grad():  # the first token is loud, so that its range is not the others'
        lm.model.model.embed_tokens.weight[3, 5] = 1.0
    ids_1T = torch.tensor([[3, *range(10, 22)]])
    plain = lm.model(ids_1T).logits
    config = ActivationScheme(element=f"int{bits}", scope="tensor")
    with rounded_stream(lm, config, first=first):
        found = lm.model(ids_1T).logits
    torch.testing.assert_close(found, by_hand(lm.model, ids_1T, bits, first), rtol=1e-4, atol=1e-6)
    assert torch.equal(lm.model(ids_1T).logits, plain)
    error, other = (
        float((found - plain)[:, 1:].norm()),
        float((by_hand(lm.model, ids_1T, bits, 1 - first) - plain)[:, 1:].norm()),
    )
    assert (error > 2 * other) == (first == 0)


def test_a_stream_that_cannot_be_rounded():
    lm = tiny("llama")
    for config in (
        ActivationScheme(scope="tensor", range="static"),
        ActivationScheme(restore=Restore(places=((DOWN, (1,)),))),
    ):
        with pytest.raises(StudfinderError, match="rounded by what is in it"), rounded_stream(lm, config):
            pass
    with (
        pytest.raises(StudfinderError, match="experts in a fused parameter"),
        rounded_stream(tiny("qwen3_moe"), ActivationScheme()),
    ):
        pass
    with pytest.raises(StudfinderError, match="without their positions"):
        rounded_after(rows(), 1, ActivationScheme())


def test_static_ranges_come_from_calibration_text():
    lm, ids = tiny("llama"), token_ids()
    static = WithActivations(weights=FINE, activations=ActivationScheme(scope="tensor", range="static"))
    with pytest.raises(StudfinderError, match="needs calibration text"):
        quantized(lm, static)
    with torch.no_grad():
        before = lm.model(ids).logits
    with quantized(lm, static, windows=prompts((40, 40))) as bench, torch.no_grad():
        assert "static" in bench.notes[-1]
        near = lm.model(ids).logits
    with torch.no_grad():
        assert torch.equal(lm.model(ids).logits, before)
    assert 0 < (near - before).norm() < 0.2 * before.norm()
    with pytest.raises(StudfinderError, match="no range is known"):
        with rounded_inputs(lm, ActivationScheme(scope="tensor", range="static"), targets(lm)):
            pass


@pytest.mark.parametrize("scheme", [{"scope": "token"}, {"scope": "tensor"}, {"scope": "tensor", "range": "static"}])
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "lfm2", "gpt2"])
def test_what_enters_the_products_of_attention_is_rounded(architecture, scheme):
    """A token's heads share a scale, and layers without attention are passed over."""
    lm, ids, config = tiny(architecture), token_ids(1), ActivationScheme(element="int4", **scheme)
    layer = next(number for number, one in enumerate(lm.anatomy.layers) if one.mixer and one.mixer.readable)
    sites = [Site(kind, layer) for kind in ("query", "key", "value")]
    clean = capture(lm, ids, sites)
    with torch.no_grad():
        before = lm.model(ids).logits
    with quantized(lm, WithProducts(method=Unrounded(), activations=config), windows=ids.tolist()) as bench:
        seen = capture(lm, ids, sites)
        assert bench.bits == 32
        assert "queries, keys and values" in bench.notes[-1]
    for name, x_BHTD in clean.items():
        rows = x_BHTD.transpose(1, 2).flatten(2)[0]
        made = fake_quantized(rows, replace(config, range="dynamic"))  # calibrated on the same window
        torch.testing.assert_close(seen[name].transpose(1, 2).flatten(2)[0], made)
        assert not torch.equal(made, rows)
    with torch.no_grad():
        assert torch.equal(lm.model(ids).logits, before)


def test_a_model_whose_products_cannot_be_reached_is_refused():
    with pytest.raises(StudfinderError, match="cannot be reached"):
        with quantized(tiny("falcon"), WithProducts(method=Unrounded(), activations=ActivationScheme())):
            pass


def test_a_static_range_leaves_out_what_is_restored():
    lm, name = tiny("llama"), "model.layers.1.mlp.down_proj.weight"
    largest = []
    for times in (1, 1e6):
        with torch.no_grad():
            lm.model.get_parameter("model.layers.1.mlp.up_proj.weight")[4] *= times
        for restore in (None, Restore(places=((name, (4,)),), ratio=1.5)):
            bench = bench_for(lm, FINE, windows=prompts((40, 40)))
            low, high = input_ranges(bench, restore)[name]
            largest.append(max(-low, high))
    plain, plain_restored, spiked, restored = largest
    assert spiked > 1000 * plain
    assert restored == plain_restored <= plain


def test_where_super_activations_enter_matrices():
    lm, ids = tiny("llama"), token_ids()
    findings, _ = a_scan()
    weight = dataclasses.replace(findings.super_weights[0], layer=1, parameter=DOWN, index=(3, 4), row=3, col=4)
    places = dict(super_channels(lm, [dataclasses.replace(weight, verdict="proven", effect=EFFECT)]))
    assert places.pop(DOWN) == (4,)
    readers = [f"model.layers.2.self_attn.{part}_proj.weight" for part in "qkv"]
    readers += [f"model.layers.2.mlp.{part}_proj.weight" for part in ("gate", "up")]
    assert places == dict.fromkeys(readers, (3,))
    with pytest.raises(StudfinderError, match="no super weights"):
        super_channels(lm, [])
    with torch.no_grad():
        lm.model.get_parameter(DOWN)[3, 4] = 3000.0  # one neuron now makes channel 3 of the residual stream massive
        before = lm.model(ids).logits
        errors = {}
        for name, down, channel in (("right", 4, 3), ("wrong", 5, 6)):
            chosen = ((DOWN, (down,)), *((reader, (channel,)) for reader in readers))
            restore = Restore(places=chosen, ratio=0.01)
            with rounded_inputs(lm, ActivationScheme(element="int5", restore=restore), targets(lm)):
                errors[name] = float((lm.model(ids).logits - before).norm())
        with rounded_inputs(lm, ActivationScheme(element="int5"), targets(lm)):
            naive = float((lm.model(ids).logits - before).norm())
    assert errors["right"] < 0.9 * naive
    assert errors["right"] < 0.9 * errors["wrong"]


def test_what_can_be_exported_says_so():
    arguments = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}
    assert stored_as(WithActivations(), "auto", torch.bfloat16).arguments == arguments
    assert stored_as(SmoothQuant(), "auto", torch.bfloat16).arguments == arguments
    assert stored_as(SmoothQuant(activations=None), "auto", torch.bfloat16).arguments is None
    for config in (ActivationScheme(zero="float"), ActivationScheme(scope="tensor", range="static")):
        with pytest.raises(StudfinderError, match="dense"):
            stored_as(WithActivations(activations=config), "auto", torch.bfloat16)


def test_bad_input():
    for settings in (
        {"range": "static"},
        {"scope": "channel"},
        {"element": "fp4"},
        {"element": "int9"},
        {"element": "fp8", "zero": "float"},
    ):
        with pytest.raises(StudfinderError):
            ActivationScheme(**settings)
    for settings in (
        {"places": ()},
        {"places": ((DOWN, (1,)),), "ratio": 0},
        {"places": ((DOWN, (1,)),), "median": "x"},
    ):
        with pytest.raises(StudfinderError):
            Restore(**settings)
    lm = tiny("llama")
    for places, problem in (((("nowhere", (1,)),), "not rounded"), (((DOWN, (C * 9,)),), "no input channel")):
        with pytest.raises(StudfinderError, match=problem):
            with rounded_inputs(lm, ActivationScheme(restore=Restore(places=places)), targets(lm)):
                pass

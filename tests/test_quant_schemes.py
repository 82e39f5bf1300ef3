"""Schemes and rounding: what a code stands for, what it costs, and what does not fit."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from studfinder.errors import StudfinderError
from studfinder.quantizers import RTN, SCHEMES, Clip, Scheme, bits_per_weight, fit_grid, quantize_weight
from studfinder.quantizers.clip import search
from studfinder.quantizers.grid import codes, dequantized, grid_of
from studfinder.quantizers.rtn import round_to_nearest
from studfinder.quantizers.seen import NOT_TRIED, seen, seen_in_words, seen_record
from studfinder.records import Format


def weight(rows: int = 8, cols: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


ELEMENTS = ["int2", "int3", "int4", "int5", "int6", "int7", "int8", "fp8", "fp4"]
BLOCKS = ["tensor", "channel", 16, (4, 16)]


@pytest.mark.parametrize(("element", "block"), list(itertools.product(ELEMENTS, BLOCKS)))
def test_no_entry_is_further_off_than_half_its_step(element, block):
    for zero in ("none", "integer", "float") if element.startswith("int") else ("none",):
        scheme = Scheme(element=element, block=block, zero=zero, scale="float32")
        w = weight()
        quantized = quantize_weight(w, scheme)
        step = quantized.grid.step
        rows, cols = torch.tensor(w.shape) // torch.tensor(step.shape)
        step_RC = step.repeat_interleave(int(rows), 0).repeat_interleave(int(cols), 1)
        if element == "fp8":
            allowed = torch.maximum(w.abs() / 16, step_RC * 2**-10)  # 3 bits of mantissa, or below the normal numbers
        elif element == "fp4":
            allowed = torch.maximum(w.abs() / 3, step_RC / 4)
        else:
            allowed = step_RC / 2  # symmetric codes reach half a step short of the largest entry
            allowed = allowed * (2 if zero == "integer" else 1)  # the zero point is rounded too
        assert ((quantized.dequantized() - w).abs() <= allowed * 1.0001).all()


@given(
    st.sampled_from(ELEMENTS),
    st.sampled_from(["tensor", "channel", 8, 32, (2, 8), (3, 5)]),
    st.sampled_from(["float32", "bfloat16", "float16"]),
    st.sampled_from(["none", "integer", "float"]),
    st.integers(1, 9),
    st.integers(1, 70),
    st.integers(-12, 4),
)
@settings(max_examples=150, deadline=None)
def test_rounding_twice_is_rounding_once(element, block, scale, zero, rows, cols, power):
    """What codes stand for is itself on the grid, whatever the shape, the remainder or the size of the numbers."""
    zero = zero if element.startswith("int") else "none"
    scheme = Scheme(element=element, block=block, zero=zero, scale=scale, remainder="block")
    w = weight(rows, cols, seed=rows * 100 + cols) * 2.0**power
    grid = fit_grid(w, scheme)
    once = codes(w, grid, scheme)
    value = dequantized(once, grid, scheme)
    assert torch.isfinite(value).all()
    assert torch.equal(codes(value, grid, scheme).float(), once.float())


@pytest.mark.parametrize("name", SCHEMES)
def test_every_named_scheme_was_tried_in_an_engine(name):
    format = Format(weights=SCHEMES[name])
    assert seen(format)
    said = seen_in_words(format)
    assert said.startswith("transformers ")  # the promise of every export
    assert all(one.engine in said for one in seen(format))


def test_what_was_seen_is_said_of_what_was_tried_only():
    untried = Format(weights=Scheme(element="int7", block=5))
    assert seen(untried) == ()
    assert seen_in_words(untried) == NOT_TRIED
    both = seen_in_words([untried, Format(weights=SCHEMES["fp8"])])
    assert NOT_TRIED in both
    assert untried.name in both
    assert seen_in_words([Format()]) == NOT_TRIED  # left alone: nothing to try
    narrow = Scheme(element="int8", block="channel", narrow=True, scale="float16")
    assert seen(Format(weights=narrow)) == seen(Format(weights=SCHEMES["w8-channel"]))  # stored alike
    assert set(seen_record()["formats"]) >= {"fp8+fp8", "int8-channel+int8"}


def test_stored_scales_are_of_their_type():
    w = weight()
    for scale in ("bfloat16", "float16"):
        step = fit_grid(w, Scheme(block=16, zero="integer", scale=scale)).scale
        assert torch.equal(step.to(getattr(torch, scale)).float(), step)
    power = fit_grid(w, SCHEMES["mxfp4"]).scale
    assert torch.equal(torch.frexp(power).mantissa, torch.full_like(power, 0.5))
    grid = fit_grid(w, SCHEMES["nvfp4"])
    assert torch.equal(grid.scale.to(torch.float8_e4m3fn).float(), grid.scale)
    assert 224 < grid.scale.max() <= 448
    assert torch.frexp(grid.tensor_scale).mantissa == 0.5


def test_an_integer_zero_point_represents_zero_exactly():
    w = weight() + 5  # all entries on one side
    w[:, 3] = 0
    scheme = Scheme(block=16, zero="integer", scale="float32")
    assert (quantize_weight(w, scheme).dequantized()[:, 3] == 0).all()
    floating = quantize_weight(weight() + 5.03, Scheme(block=16, zero="float", scale="float32"))
    assert not (floating.dequantized() == 0).any()


def test_two_dimensional_tiles_share_one_scale_and_are_no_runs():
    w = torch.zeros(4, 8)
    w[:2, :4], w[:2, 4:], w[2:, :4], w[2:, 4:] = 1, 2, 3, 4
    step = fit_grid(w, Scheme(block=(2, 4), scale="float32")).scale * 7.5
    torch.testing.assert_close(step, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))


def test_a_remainder_is_an_error_or_a_block_of_its_own():
    w = weight(4, 70)
    with pytest.raises(StudfinderError, match=r"1 x 32 do not divide a matrix of 4 x 70"):
        quantize_weight(w, Scheme(block=32))
    quantized = quantize_weight(w, Scheme(block=32, remainder="block", scale="float32"))
    assert quantized.grid.scale.shape == (4, 3)
    torch.testing.assert_close(quantized.grid.scale[:, 2], w[:, 64:].abs().amax(dim=1) / 7.5)


def test_held_out_entries_set_no_range_and_come_back_exactly():
    w = weight().bfloat16()
    w[2, 5] = 1000
    held = torch.zeros_like(w, dtype=torch.bool)
    held[2, 5] = True
    scheme = Scheme(block=16, zero="integer")
    with_it, without = quantize_weight(w, scheme), quantize_weight(w, scheme, held_RC=held)
    rest = ~held[2, :16]
    error = lambda q: (q.dequantized()[2, :16] - w[2, :16].float())[rest].abs().max()  # noqa: E731
    assert error(with_it) > 0.5 > error(without)
    assert without.dequantized()[2, 5] == 1000
    assert without.bits == pytest.approx(with_it.bits + 48 / w.numel())
    everything = quantize_weight(w, scheme, held_RC=torch.ones_like(held))
    assert torch.equal(everything.dequantized().bfloat16(), w)


@pytest.mark.parametrize("zero", ["none", "integer", "float"])
def test_holding_out_the_extremum_without_clipping_changes_nothing_for_it(zero):
    """Restoring the largest weight after rounding is a no-op where the grid already represents it."""
    w = weight()
    w[0, 0] = -9
    scheme = Scheme(element="int4", block=64, zero=zero, scale="float32")
    value = quantize_weight(w, scheme).dequantized()[0, 0]
    step = fit_grid(w, scheme).step[0, 0]
    assert abs(value + 9) <= step / 2 + 1e-5


def test_clip_search_never_loses_and_wins_with_an_outlier():
    w = weight(16, 64)
    w[:, 7] *= 4
    scheme = Scheme(element="int3", block=64, zero="integer", scale="float32")
    clip = Clip(norm=2.0, weight=0.0, lowest=0.3)
    plain, clipped = round_to_nearest(w, RTN(scheme=scheme)), round_to_nearest(w, RTN(scheme=scheme, clip=clip))
    loss = lambda q: (q.dequantized() - w).pow(2).sum(dim=1)  # noqa: E731
    assert (loss(clipped) <= loss(plain)).all()
    assert loss(clipped).sum() < 0.9 * loss(plain).sum()
    factors = search(w, scheme, clip)
    assert factors.max() <= 1
    assert factors.min() >= 0.3 - 1e-6


def test_the_default_search_counts_large_numbers_more_and_keeps_the_one_that_carries_a_model():
    w = weight(16, 64)
    w[3, 7] = 30.0
    scheme = Scheme(element="int4", block=64, zero="integer", scale="float32")
    loss = lambda q: (w.abs() * (q.dequantized() - w).pow(2)).sum(dim=1)  # noqa: E731
    plain, clipped = round_to_nearest(w, RTN(scheme=scheme)), round_to_nearest(w, RTN(scheme=scheme, clip=Clip()))
    assert (loss(clipped) <= loss(plain) * (1 + 1e-6)).all()
    assert abs(float(clipped.dequantized()[3, 7]) - 30) < 0.5
    alike = round_to_nearest(w, RTN(scheme=scheme, clip=Clip(weight=0.0)))
    assert float(alike.dequantized()[3, 7]) < float(clipped.dequantized()[3, 7])


def test_importance_moves_the_clip():
    w = weight(16, 64)
    w[:, 7] *= 6
    scheme = Scheme(element="int3", block=64, zero="integer", scale="float32")
    importance = torch.ones(64)
    importance[7] = 1e4
    clip = Clip(norm=2.0, weight=0.0, lowest=0.3)
    assert search(w, scheme, clip, importance_C=importance).mean() > search(w, scheme, clip).mean() + 0.05


def test_bits_count_scales_zero_points_and_kept_numbers():
    assert bits_per_weight((128, 1024), Scheme(element="int4", block=128)) == 4 + 16 / 128
    assert bits_per_weight((128, 1024), Scheme(element="int4", block=128, zero="integer")) == 4 + 20 / 128
    assert bits_per_weight((128, 1024), Scheme(element="int4", block=128, zero="float")) == 4 + 32 / 128
    assert bits_per_weight((128, 1024), SCHEMES["mxfp4"]) == 4.25
    assert bits_per_weight((128, 1024), SCHEMES["nvfp4"]) == 4.5 + 32 / (128 * 1024)
    assert bits_per_weight((128, 1024), Scheme(block="tensor"), kept=3) == 4 + (16 + 3 * 48) / (128 * 1024)
    assert bits_per_weight((100, 100), SCHEMES["fp8-block"]) == 8 + 16 / 10_000


def test_fp4_rounds_ties_to_even():
    scheme = Scheme(element="fp4", block="tensor", scale="float32")
    w = torch.tensor([[0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, -0.75, -5.0, 0.0, 9.0]])
    grid = grid_of(torch.tensor([[-6.0]]), torch.tensor([[6.0]]), scheme)
    value = dequantized(codes(w, grid, scheme), grid, scheme)
    assert value[0].tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0, -1.0, -4.0, 0.0, 6.0]


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"element": "int9"}, "element 'int"),
        ({"element": "int1"}, "element 'int"),
        ({"block": 0}, "block 0"),
        ({"block": (2, 3, 4)}, "block"),
        ({"block": True}, "block"),
        ({"scale": "float8"}, "scale 'float8'"),
        ({"zero": "maybe"}, "zero"),
        ({"element": "fp8", "zero": "integer"}, "zero point"),
        ({"scale": "e8m0", "zero": "float"}, "float minimum"),
        ({"remainder": "tensor"}, "remainder"),
        ({"element": "fp4", "narrow": True}, "narrow"),
    ],
)
def test_settings_that_do_not_go_together(settings_, message):
    with pytest.raises(StudfinderError, match=message):
        Scheme(**settings_)


def test_a_weight_that_is_not_finite_is_refused():
    w = weight()
    w[3, 3] = float("nan")
    for scheme in (SCHEMES["w4-g64"], Scheme(block=48, remainder="block"), Scheme(block=(4, 32))):
        with pytest.raises(StudfinderError, match="NaN"):
            quantize_weight(w, scheme)
    w[3, 3] = float("inf")
    with pytest.raises(StudfinderError, match="infinite"):
        quantize_weight(w, SCHEMES["w8-channel"])


@pytest.mark.parametrize(
    ("scheme", "arguments"),
    [
        (Scheme(block=32, zero="integer", scale="float32"), {"num_bits": 4, "symmetric": False, "group_size": 32}),
        (Scheme(block=32, scale="float32"), {"num_bits": 4, "symmetric": True, "group_size": 32}),
        (Scheme(element="int3", block="channel", scale="float32"), {"num_bits": 3, "strategy": "channel"}),
        (Scheme(element="int8", block="tensor", scale="float32"), {"num_bits": 8, "strategy": "tensor"}),
        (
            Scheme(element="fp8", block="channel", scale="float32"),
            {"num_bits": 8, "type": "float", "strategy": "channel"},
        ),
        (SCHEMES["mxfp4"], {"num_bits": 4, "type": "float", "group_size": 32, "scale_dtype": torch.uint8}),
    ],
)
def test_codes_are_those_of_compressed_tensors(scheme, arguments):
    """The numerics of llm-compressor: same scales, same zero points, same codes, in fp32."""
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    w = weight(16, 64)
    reference = QuantizationArgs(**arguments)
    height, width = (16, 64) if scheme.block == "tensor" else (1, scheme.block if scheme.block != "channel" else 64)
    tiles = w.reshape(16 // height, height, 64 // width, width)
    scale, zero = calculate_qparams(tiles.amin(dim=(1, 3)), tiles.amax(dim=(1, 3)), reference)
    expected = fake_quantize(w, scale, zero, reference)
    assert torch.equal(quantize_weight(w, scheme).dequantized(), expected)

"""Calibrated methods in the built-in model, kept small: a few windows, and what must hold with so few."""

from __future__ import annotations

import pytest
import torch

import studfinder as sf
from builtins_here import REAL_DTYPE
from studfinder.quantizers import RTN, Scheme, calibration_windows, quantized
from studfinder.quantizers.activations import ActivationScheme, WithActivations
from studfinder.quantizers.gptq import GPTQ, gptq
from studfinder.quantizers.grid import quantize_weight
from studfinder.quantizers.kv_cache import KVCache, quantized_cache
from studfinder.quantizers.walk import output_error, second_moments, walk

pytestmark = pytest.mark.real

W4 = Scheme(block=64, zero="integer")


@pytest.fixture(scope="module")
def lm() -> sf.LM:
    return sf.load("smollm2", dtype=REAL_DTYPE)


@pytest.fixture(scope="module")
def windows(lm) -> list[list[int]]:
    return calibration_windows(lm, count=8, length=128)[1]


@torch.no_grad()
def loss(lm: sf.LM, windows: list[list[int]]) -> float:
    """Mean loss in nats per token on some windows."""
    return sum(float(lm.model(torch.tensor([ids]), labels=torch.tensor([ids])).loss) for ids in windows) / len(windows)


def test_gptq_reconstructs_every_matrix_of_the_first_layer_better_on_other_text(lm, windows):
    from studfinder.quantizers.apply import bench_for

    fit, judge = (next(walk(bench_for(lm, RTN(scheme=W4), windows=part))) for part in (windows[:6], windows[6:]))
    moments, other = second_moments(fit), second_moments(judge)
    for target in fit.targets:
        weight = target.weight(lm).float()
        (found,), _ = gptq([weight], moments[target.name], GPTQ(scheme=W4))
        nearest = quantize_weight(weight, W4)
        new, old = (output_error(one.dequantized() - weight, other[target.name]) for one in (found, nearest))
        assert new < old, target.name


def test_naive_w8a8_costs_little_and_leaves_the_model_as_it_was(lm, windows):
    clean = loss(lm, windows[:2])
    channel = RTN(scheme=Scheme(element="int8", block="channel"))
    with quantized(lm, WithActivations(weights=channel, activations=ActivationScheme())):
        token = loss(lm, windows[:2])
    assert loss(lm, windows[:2]) == clean
    assert abs(token - clean) < 0.2


def test_a_centred_four_bit_cache_loses_less_than_a_plain_one(lm, windows):
    clean = loss(lm, windows[6:])
    off = {}
    for centre in ("none", "dropped", "added"):
        with quantized_cache(lm, KVCache(element="int4", centre=centre), windows=windows[:4]):
            off[centre] = loss(lm, windows[6:]) - clean
    assert loss(lm, windows[6:]) == clean
    assert off["dropped"] < off["none"]
    assert off["added"] < off["none"]

"""CLIP-quantise-RESTORE: choices are made by measured error on calibration text."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
import torch

from scanned import findings_for
from studfinder.edits import Weights
from studfinder.errors import StudfinderError
from studfinder.models import content_hash
from studfinder.quantizers import RTN, Scheme, hold_out, neurons_of, quantized, targets
from studfinder.quantizers.apply import bench_for
from studfinder.quantizers.clip_restore import ClipRestore
from studfinder.quantizers.keep import resolve
from studfinder.quantizers.walk import output_error, second_moments, walk
from tiny import prompts, tiny

CHANNEL = Scheme(element="int4", block="channel", zero="integer", scale="float32")
DOWN = "model.layers.1.mlp.down_proj.weight"


def with_outlier():
    lm = tiny("llama")
    with torch.no_grad():
        lm.model.get_parameter(DOWN)[3, 4] = 5.0
    return lm


def test_clip_and_round_clamps_each_block_by_its_own_magnitudes():
    w = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    w[2, 5] = 50
    scheme = Scheme(element="int8", block=16, scale="float32")
    found = ClipRestore(scheme=scheme).rounded(w, 2.0).dequantized()
    block = w[2, :16].abs()
    limit = block.mean() + 2 * block.std(unbiased=False)
    assert found[2, 5] == pytest.approx(limit.item(), rel=0.01)
    assert torch.equal(
        ClipRestore(scheme=scheme).rounded(w, inf).dequantized()[3],
        ClipRestore(scheme=scheme).rounded(w, 1e6).dequantized()[3],
    )
    held = w == 50
    restored = ClipRestore(scheme=scheme).rounded(w, 2.0, held).dequantized()
    assert restored[2, 5] == 50
    two = Scheme(element="int8", block=(3, 20), remainder="block", scale="float32")
    assert ClipRestore(scheme=two).rounded(w, 3.0).dequantized().shape == w.shape


def test_the_chosen_clip_is_the_best_of_the_candidates_and_no_clip_is_one():
    lm = with_outlier()
    windows = prompts()
    with quantized(lm, ClipRestore(scheme=CHANNEL), windows=windows) as bench:
        found = {name: done.dequantized() for name, done in bench.done.items()}
        assert "no clip" in bench.notes[0]
    bench = bench_for(lm, RTN(scheme=CHANNEL), windows=windows)
    first = next(walk(bench))
    for name, moment in second_moments(first).items():
        weight = dict(lm.model.named_parameters())[name].detach()
        errors = [
            output_error(ClipRestore(scheme=CHANNEL).rounded(weight, z).dequantized() - weight, moment)
            for z in ClipRestore().candidates
        ]
        assert output_error(found[name] - weight, moment) == pytest.approx(min(errors), rel=1e-5)


def test_restoring_without_a_clip_is_a_no_op_for_the_extremum_and_clipping_helps_its_neighbours():
    lm = with_outlier()
    keep = hold_out(Weights(parameter=DOWN, entries=((3, 4),)))
    with quantized(lm, ClipRestore(scheme=CHANNEL), keep=keep, windows=prompts()):
        kept = lm.model.get_parameter(DOWN).detach().clone()
    with quantized(lm, RTN(scheme=CHANNEL)):
        plain = lm.model.get_parameter(DOWN).detach().clone()
    weight = lm.model.get_parameter(DOWN).detach()
    assert kept[3, 4] == 5.0
    rest = [col for col in range(weight.shape[1]) if col != 4]
    assert (kept - weight)[3, rest].norm() < (plain - weight)[3, rest].norm() / 5


def test_whole_columns_are_everything_that_meets_an_input():
    lm = with_outlier()
    one = Weights(parameter=DOWN, entries=((3, 4), (0, 7)))
    rows = lm.model.get_parameter(DOWN).shape[0]
    for keep, count in ((hold_out(one), 2), (hold_out(one, columns=True), 2 * rows)):
        held, _ = resolve(lm, targets(lm), keep)
        assert held[DOWN].sum() == count
    assert held[DOWN][:, [4, 7]].all()
    with quantized(lm, RTN(scheme=CHANNEL), keep=keep):
        kept = lm.model.get_parameter(DOWN).detach().clone()
    weight = lm.model.get_parameter(DOWN).detach()
    assert torch.equal(kept[:, [4, 7]], weight[:, [4, 7]])
    assert not torch.equal(kept, weight)


def test_what_was_found_in_another_model_is_refused():
    lm = with_outlier()
    keep = replace(hold_out(Weights(parameter=DOWN, entries=((3, 4),))), model="another")
    with pytest.raises(StudfinderError, match="the findings are of a model, with hash another"):
        resolve(lm, targets(lm), keep)
    assert resolve(lm, targets(lm), replace(keep, model=content_hash(lm)))


def test_findings_mean_their_super_weights_less_the_inert_ones():
    lm = with_outlier()
    findings = findings_for(lm, [(DOWN, (3, 4), "proven"), (DOWN, (5, 6), "inert")])
    with quantized(lm, RTN(scheme=CHANNEL), keep=findings) as bench:
        assert bench.held[DOWN].nonzero().tolist() == [[3, 4]]
        assert set(bench.held) == {DOWN}
    assert neurons_of(findings) == ((1, 4),)
    with torch.no_grad():
        lm.model.get_parameter(DOWN)[0, 0] += 1
    with pytest.raises(StudfinderError, match="expected findings of this model"):
        quantized(lm, RTN(scheme=CHANNEL), keep=findings)


def test_a_weight_that_is_not_finite_is_named_and_never_held_out():
    lm = tiny("llama")
    with torch.no_grad():
        lm.model.get_parameter(DOWN)[1, 2] = float("nan")
    for method, keep in ((RTN(scheme=CHANNEL), None), (RTN(scheme=CHANNEL), hold_out(fraction=0.01))):
        with pytest.raises(StudfinderError, match=f"{DOWN}: a weight is NaN"):
            quantized(lm, method, keep=keep).__enter__()


def test_what_needs_calibration_says_so():
    lm = tiny("llama")
    with pytest.raises(StudfinderError, match="ClipRestore needs calibration text"):
        quantized(lm, ClipRestore(scheme=CHANNEL))
    with pytest.raises(StudfinderError, match=r"candidates=0.0; expected above 0"):
        ClipRestore(candidates=(0.0,))

"""CLIP-quantise-RESTORE and auto: choices are made by measured error on calibration text."""

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
from studfinder.quantizers.apply import bench_for, running
from studfinder.quantizers.auto import Auto, as_it_is
from studfinder.quantizers.clip_restore import ClipRestore
from studfinder.quantizers.grid import quantize_weight
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


def test_auto_takes_the_cheapest_within_its_budget():
    lm = with_outlier()
    windows = prompts()
    for budget, labels in ((1e6, {"as it is: 12"}), (0.001, {"skipped", "held out"})):
        with quantized(lm, RTN(scheme=CHANNEL), transforms=Auto(budget=budget), windows=windows) as bench:
            note = bench.notes[0]
            assert all(label in note for label in labels), note
            if budget > 1:
                assert not bench.held
                free = bench.bits
            else:
                assert DOWN in bench.held
                assert bench.held[DOWN][3, 4]
                assert bench.bits > free


def errors_of_ways(lm, scheme, keep):
    """Relative error of each way to store the down projection with the outlier."""
    bench = bench_for(lm, RTN(scheme=scheme), keep=keep, windows=prompts())
    block = next(block for block in walk(bench) if block.layer == 1)
    moments = second_moments(block)
    (target,) = [target for target in block.targets if target.name == DOWN]
    weight = lm.model.get_parameter(DOWN).detach()
    size = output_error(weight, moments[DOWN])
    found = {}
    for way in Auto(fractions=())._ways(bench, [target], as_it_is(bench, [target], moments)):
        held = way.masks[DOWN] if way.masks[DOWN].any() else None
        rounded = quantize_weight(way.weights[DOWN], scheme, held_RC=held).dequantized()
        found[way.label] = output_error(rounded - way.weights[DOWN], way.moments[DOWN]) / size
    return found


@pytest.mark.parametrize("change", ["neurons sorted", "rebalanced by"])
def test_auto_takes_an_exact_change_where_that_is_enough(change):
    lm, scheme = with_outlier(), Scheme(element="int4", block=16)
    with torch.no_grad():
        down, up = (lm.model.get_parameter(DOWN.replace("down", name)) for name in ("down", "up"))
        if change == "neurons sorted":  # small written weights that count beside large ones that do not
            down[3, 4] = down[3, 5]
            down[:, ::2] *= 30
            up[::2] /= 30
        else:  # a large written weight that hardly counts
            down[:, 4] = 1.0
            up[4] /= 200
    keep = hold_out(Weights(parameter=DOWN, entries=((3, 4),)))
    errors = errors_of_ways(lm, scheme, keep)
    cheaper = {
        label: min([e for other, e in errors.items() if other != label][: list(errors).index(label)] or [0])
        for label in errors
    }
    wanted = next(label for label in errors if label.startswith(change) and errors[label] < 0.8 * cheaper[label])
    budget = (errors[wanted] + cheaper[wanted]) / 2
    old = down.detach().clone()
    with quantized(lm, RTN(scheme=scheme), keep=keep) as free:
        bits = free.bits
    with quantized(lm, RTN(scheme=scheme), keep=keep, transforms=Auto(budget=budget), windows=prompts()) as bench:
        assert f"{wanted}: " in bench.notes[-1]
        assert DOWN not in bench.held
        if not bench.skipped:
            assert bench.bits < bits
    assert torch.equal(down, old)


def test_auto_skips_where_there_is_no_place_for_numbers():
    lm = with_outlier()
    with quantized(lm, RTN(scheme=CHANNEL), transforms=Auto(budget=0.005), windows=prompts()) as bench:
        held = set(bench.held)
        assert held
    bench = bench_for(lm, RTN(scheme=CHANNEL), transforms=Auto(budget=0.005), windows=prompts())
    bench.numbers = False
    with running(bench, RTN(scheme=CHANNEL)):
        assert not bench.held
        assert bench.done
        assert not held & set(bench.done)  # what would have been held out is whole instead
        assert "held out" not in bench.notes[0]
    two = RTN(scheme=Scheme(element="int2", block="channel"))
    with pytest.raises(StudfinderError, match="no group keeps its error"):
        with quantized(lm, two, transforms=Auto(budget=1e-9, fractions=()), windows=prompts()):
            pass


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
    with pytest.raises(StudfinderError, match="Auto needs calibration text"):
        quantized(lm, RTN(scheme=CHANNEL), transforms=Auto())
    with pytest.raises(StudfinderError, match=r"candidates=0.0; expected above 0"):
        ClipRestore(candidates=(0.0,))
    with pytest.raises(StudfinderError, match=r"budget=.*expected above 0"):
        Auto(budget=0)


def test_auto_holds_out_the_columns_of_loud_inputs_where_that_is_cheapest():
    lm = tiny("llama")
    with torch.no_grad():
        up = lm.model.get_parameter("model.layers.1.mlp.up_proj.weight")
        up[4] *= 100
    scheme = Scheme(element="int3", block=16, scale="float32")
    with quantized(lm, RTN(scheme=scheme), transforms=Auto(budget=0.01, fractions=(0.02,)), windows=prompts()) as bench:
        assert "by columns" in bench.notes[0]
        held = bench.held[DOWN]
        assert held[:, 4].all()
        assert held.sum() == held.shape[0]


def test_auto_holds_out_of_transposed_matrices_too():
    lm = tiny("gpt2")
    with quantized(lm, RTN(scheme=CHANNEL), transforms=Auto(budget=0.006), windows=prompts()) as bench:
        assert bench.held
        assert "held out" in bench.notes[0]

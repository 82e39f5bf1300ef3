"""AWQ: the search finds the best of its candidates, no scaling among them, and loses nothing before rounding."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from studfinder.errors import StudfinderError
from studfinder.quantizers import RTN, Clip, Scheme, hold_out, quantize_weight, quantized
from studfinder.quantizers.apply import bench_for
from studfinder.quantizers.awq import AWQ, _best_clip, _error
from studfinder.quantizers.folds import norm_folds, up_fold, value_fold
from studfinder.quantizers.massive import row_weights
from studfinder.quantizers.walk import output_error, second_moments, walk
from test_quant_smoothquant import outlying
from tiny import D, H, L, prompts, tiny, token_ids

W3 = Scheme(element="int3", block=16, zero="integer", scale="float32")
WINDOWS = prompts((40, 40))


@pytest.mark.parametrize("duo", [True, False, "both"])
def test_the_chosen_factors_are_the_best_of_the_candidates(duo, monkeypatch):
    lm = outlying()
    method = AWQ(scheme=W3, candidates=8, duo=duo)
    bench = bench_for(lm, method, windows=WINDOWS)
    block = next(walk(bench))
    fold = norm_folds(lm, block)[0]
    error = _error(lm, block, fold, {})
    plain = error(method._rounded(bench, fold, torch.ones(32)))
    alone, grid = {}, method._grid()
    assert len(grid) == 8
    assert (0.0, False) in grid
    for candidate in grid:
        monkeypatch.setattr(AWQ, "_grid", lambda _self, candidate=candidate: [candidate])
        alpha, scale = method.search(bench, block, fold)
        assert alpha == candidate[0]
        alone[candidate] = error(method._rounded(bench, fold, scale)), alpha
    monkeypatch.setattr(AWQ, "_grid", lambda _self: grid)
    alpha, scale = method.search(bench, block, fold)
    assert (error(method._rounded(bench, fold, scale)), alpha) == min(alone.values())
    assert min(alone.values())[0] < 0.9 * plain


def test_errors_by_rows_and_by_output_are_the_same_for_a_matrix_alone():
    lm = outlying()
    method = AWQ(scheme=W3)
    bench = bench_for(lm, method, windows=WINDOWS)
    block = next(walk(bench))
    fold = up_fold(lm, 0)
    made = method._rounded(bench, fold, torch.rand(48) + 0.5)
    (name,) = made
    weight = lm.model.get_parameter(name).detach()
    moment = second_moments(block)[name]
    relative = output_error(made[name] - weight, moment) / output_error(weight, moment)
    assert _error(lm, block, fold, {})(made) == pytest.approx(relative, rel=1e-4)


def test_values_are_folded_only_where_heads_do_not_share_them_unless_asked():
    lm = tiny("llama")  # two query heads a value head
    assert value_fold(lm, 0) is None
    fold = value_fold(lm, 0, shared=True)
    assert fold.row_C.tolist() == [*range(8), *range(8), *range(8, 16), *range(8, 16)]
    bench = bench_for(lm, AWQ(scheme=W3, shared_values=True), windows=WINDOWS)
    _, scale = AWQ(scheme=W3, shared_values=True).search(bench, next(walk(bench)), fold)
    assert torch.equal(scale[:8], scale[8:16])
    assert value_fold(tiny("gemma2"), 0) is None


def test_a_model_loses_less_and_is_put_back():
    lm, ids = outlying(), token_ids(4, 20)
    with torch.no_grad():
        before = lm.model(ids).logits
    errors = {}
    methods = {
        "rtn": RTN(scheme=W3),
        "awq": AWQ(scheme=W3),
        "clip": AWQ(scheme=W3, clip=Clip(steps=10, lowest=0.55), shared_values=True),
    }
    for name, method in methods.items():
        with quantized(lm, method, windows=WINDOWS) as bench, torch.no_grad():
            errors[name] = float((lm.model(ids).logits - before).norm())
            assert len(bench.done) == 21
        with torch.no_grad():
            assert torch.equal(lm.model(ids).logits, before)
    assert errors["awq"] < 0.9 * errors["rtn"]
    assert errors["clip"] < 0.9 * errors["rtn"]


def test_held_out_numbers_and_other_architectures():
    for architecture in ("gpt2", "phi", "qwen2", "gemma3_text"):
        lm = tiny(architecture)
        with quantized(lm, AWQ(scheme=W3, candidates=4), keep=hold_out(fraction=0.05), windows=prompts((9,))) as bench:
            assert all(one.kept is not None for one in bench.done.values())


def test_the_clip_search_takes_the_smallest_error_of_each_group():
    w = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    w[2, 3] = 6.0
    x = torch.randn(100, 32, generator=torch.Generator().manual_seed(1))
    h = x.T @ x / 100
    clip = Clip(steps=5, lowest=0.6)
    best = _best_clip(w, h, W3, clip, None)
    assert best.shape == (5, 2)
    assert best[2, 0] < 1
    for g in range(2):
        cols = slice(16 * g, 16 * g + 16)
        tried = torch.stack(
            [
                ((x[:, cols] @ (quantize_weight(w, W3, clip=f).dequantized() - w)[:, cols].T) ** 2).mean(0)
                for f in torch.linspace(1, 0.6, 5).tolist()
            ]
        )
        assert torch.equal(best[:, g], torch.linspace(1, 0.6, 5)[tried.argmin(0)])


def test_massive_values_weigh_rows(tmp_path):
    lm = tiny("llama")
    query, key = torch.ones(L, H, D), torch.ones(L, 2, D)
    key[0, 1, 3] = 10.0
    maps = {"norm.query": query, "norm.key": key, "norm.query.layers": torch.arange(L)}
    save_file(maps, tmp_path / "profile.safetensors")
    weights = row_weights(lm, tmp_path)
    q = weights["model.layers.0.self_attn.q_proj.weight"].view(H, D)
    assert q[0].tolist() == [1.0] * D
    for head in (2, 3):  # they read key head 1; dims 3 and 7 rotate together
        assert q[head, 3] == q[head, 7] == pytest.approx((100 + 1) / 2)
        assert q[head, 0] == 1
    assert weights["model.layers.0.self_attn.k_proj.weight"].tolist() == [2.0] * 16  # two query heads read each
    method = AWQ(scheme=W3, candidates=6, massive_values=str(tmp_path))
    with quantized(lm, method, windows=WINDOWS) as bench:
        weighed = {name: one.dequantized() for name, one in bench.done.items()}
    with quantized(lm, AWQ(scheme=W3, candidates=6), windows=WINDOWS) as bench:
        plain = {name: one.dequantized() for name, one in bench.done.items()}
    assert not all(torch.equal(weighed[name], plain[name]) for name in plain)
    with pytest.raises(StudfinderError, match="there is no"):
        row_weights(lm, tmp_path / "nothing")
    save_file({"norm.query": query[:, :2].contiguous()}, tmp_path / "other.safetensors")
    with pytest.raises(StudfinderError, match="is no map of"):
        row_weights(lm, tmp_path / "other.safetensors")


def test_bad_input():
    with pytest.raises(StudfinderError, match="AWQ needs calibration text"):
        quantized(tiny("llama"), AWQ(scheme=W3))
    for settings in (
        {"candidates": 2},
        {"duo": "maybe"},
        {"scheme": Scheme(block="tensor")},
        {"scheme": Scheme(block=(8, 8)), "clip": Clip()},
    ):
        with pytest.raises(StudfinderError):
            AWQ(**settings)
    lm = tiny("llama")
    with torch.no_grad():
        lm.model.get_parameter("model.layers.1.self_attn.v_proj.weight")[0, 0] = float("inf")
    with pytest.raises(StudfinderError, match=r"layers\.1\.self_attn\.v_proj\.weight"):
        with quantized(lm, AWQ(scheme=W3), windows=WINDOWS):
            pass

"""SmoothQuant and the folds it shares with AWQ: exact before rounding, in every architecture that has a place."""

from __future__ import annotations

import pytest
import torch

from studfinder.errors import StudfinderError
from studfinder.quantizers import RTN, Scheme, hold_out, quantized
from studfinder.quantizers.activations import ActivationScheme, WithActivations
from studfinder.quantizers.apply import bench_for
from studfinder.quantizers.folds import check_exact, norm_folds, up_fold, value_fold
from studfinder.quantizers.smoothquant import SmoothQuant
from studfinder.quantizers.walk import walk
from tiny import C, prompts, tiny, token_ids

W8 = Scheme(element="int8", block="channel", narrow=True, scale="float32")
FOLDED = {
    "llama": ({"norm", "value", "up"}, 4),
    "mistral": ({"norm", "value", "up"}, 4),
    "qwen2": ({"norm", "value", "up"}, 4),
    "qwen3": ({"norm", "value", "up"}, 4),
    "gemma": ({"norm", "value", "up"}, 4),
    "gemma2": ({"norm", "value", "up"}, 4),
    "gemma3_text": ({"norm", "value", "up"}, 4),
    "stablelm": ({"norm", "value", "up"}, 4),
    "phi3": ({"norm", "up"}, 3),
    "phi": ({"norm", "value"}, 2),
    "olmo": ({"value", "up"}, 2),
    "olmo2": ({"value", "up"}, 2),
    "gpt2": ({"norm"}, 2),
    "gpt_neox": ({"norm"}, 2),
    "falcon": ({"norm"}, 1),
    "bloom": ({"norm"}, 2),
    "lfm2": ({"norm", "value", "up"}, 4),
}
"""By architecture: kinds of folds, and how many the block with the most has."""


def outlying(architecture: str = "llama", size: float = 30.0, dtype: torch.dtype = torch.float32):
    """A model in which a few channels of the normed residual stream are much larger than the others."""
    lm = tiny(architecture, dtype=dtype)
    with torch.no_grad():
        for name, parameter in lm.model.named_parameters():
            if "layernorm" in name and parameter.dim() == 1:
                parameter[:2] *= size
    return lm


def all_folds(lm, block):
    found = [*norm_folds(lm, block), value_fold(lm, block.layer, shared=True), up_fold(lm, block.layer)]
    return [fold for fold in found if fold is not None]


@pytest.mark.parametrize("architecture", FOLDED)
def test_folding_factors_changes_nothing_but_rounding(architecture):
    lm, ids = tiny(architecture), token_ids()
    with torch.no_grad():
        before = lm.model(ids).logits
    bench = bench_for(lm, RTN(scheme=W8), windows=prompts((9,)))
    generator = torch.Generator().manual_seed(0)
    kinds, most = set(), 0
    try:
        for block in walk(bench):
            folds = [fold for fold in all_folds(lm, block) if check_exact(lm, block, fold)]
            kinds |= {fold.kind for fold in folds}
            most = max(most, len(folds))
            for fold in folds:
                scale = torch.rand(int(fold.row_C.max()) + 1, generator=generator) * 3 + 0.3
                fold.apply(bench, scale[fold.row_C])
        with torch.no_grad():
            after = lm.model(ids).logits
        assert (kinds, most) == FOLDED[architecture]
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    finally:
        bench.restore()
    with torch.no_grad():
        assert torch.equal(lm.model(ids).logits, before)


def test_a_fold_that_something_else_reads_is_noticed():
    lm = tiny("llama")
    bench = bench_for(lm, RTN(scheme=W8), windows=prompts((9,)))
    block = next(walk(bench))
    fold = norm_folds(lm, block)[0]
    assert check_exact(lm, block, fold)
    half = type(fold)(fold.kind, fold.source, fold.row_C, fold.reads[:-1], fold.offset, fold.inspected)
    assert not check_exact(lm, block, half)


def test_smoothing_is_exact_and_evens_out_what_comes_in():
    lm, ids = outlying(), token_ids()
    windows = prompts((30, 30))
    with torch.no_grad():
        before = lm.model(ids).logits
    for extra in ({}, {"values": True, "neurons": True}, {"size": "range"}):
        method = SmoothQuant(scheme=W8, activations=None, **extra)
        bench = bench_for(lm, method, windows=windows)
        try:
            method.smooth(bench)
            with torch.no_grad():
                torch.testing.assert_close(lm.model(ids).logits, before, rtol=1e-4, atol=1e-4)
            assert f"{12 if 'values' in extra else 6} sets" in bench.notes[0]
            peaks = lm.model.get_submodule("model.layers.0.input_layernorm").weight.abs()
            assert peaks.max() < 15
        finally:
            bench.restore()


def test_the_factors_are_the_papers():
    lm = outlying()
    for alpha in (0.5, 0.85):
        method = SmoothQuant(scheme=W8, activations=None, alpha=alpha)
        bench = bench_for(lm, method, windows=prompts((30,)))
        block = next(walk(bench))
        fold = norm_folds(lm, block)[0]
        size = torch.rand(C) + 0.5
        peaks = torch.stack([lm.model.get_parameter(ref.parameter).abs().amax(dim=0) for ref in fold.reads]).amax(dim=0)
        wanted = size**alpha / peaks ** (1 - alpha)
        torch.testing.assert_close(method.factors(lm, fold, size), wanted)
    size[3] = 0
    assert method.factors(lm, fold, size)[3] == 1


def test_it_helps_where_activations_have_outlying_channels():
    lm, ids = outlying(size=100.0), token_ids(4, 20)
    with torch.no_grad():
        before = lm.model(ids).logits
    errors = {}
    naive = WithActivations(weights=RTN(scheme=W8), activations=ActivationScheme(element="int6"))
    smooth = SmoothQuant(scheme=W8, activations=ActivationScheme(element="int6"))
    for method in (naive, smooth):
        with quantized(lm, method, windows=prompts((40, 40))), torch.no_grad():
            errors[method] = float((lm.model(ids).logits - before).norm())
    assert errors[smooth] < 0.7 * errors[naive]
    with torch.no_grad():
        assert torch.equal(lm.model(ids).logits, before)


def test_held_entries_are_held_in_the_smoothed_matrix():
    lm = outlying()
    with quantized(lm, SmoothQuant(scheme=W8), keep=hold_out(fraction=0.05), windows=prompts()) as bench:
        assert len(bench.done) == 21
        assert all(one.kept is not None for one in bench.done.values())


def test_bad_input():
    with pytest.raises(StudfinderError, match="needs calibration text"):
        quantized(tiny("llama"), SmoothQuant())
    with pytest.raises(StudfinderError, match="can take a factor"):
        with quantized(tiny("olmo"), SmoothQuant(), windows=prompts()):
            pass
    with pytest.raises(StudfinderError, match=r"alpha=2.0; expected 0 to 1"):
        SmoothQuant(alpha=2.0)
    lm = tiny("llama")
    with torch.no_grad():
        lm.model.get_parameter("model.layers.2.mlp.up_proj.weight")[0, 0] = float("nan")
    with pytest.raises(StudfinderError, match=r"layers\.2\.mlp\.up_proj\.weight"):
        with quantized(lm, SmoothQuant(), windows=prompts()):
            pass

"""The one KL: against fp64, exact for equal logits, and weighted by token wherever it is averaged."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from studfinder.edits import Weights, edited, scale
from studfinder.measures import compare, effects_of
from studfinder.measures.divergence import Clean
from studfinder.passes.head import WORDS_AT_ONCE
from studfinder.studies import Divergence, Original
from tiny import tiny


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("width", "piece"), [(7, 7), (60_000, 60_000), (60_000, WORDS_AT_ONCE)])
def test_it_is_the_formula_in_fp64(dtype, width, piece):
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(20, width, generator=generator) for _ in range(2))
    clean, other = (4 * clean).to(dtype), (4 * clean + noise).to(dtype)
    next_T = torch.arange(20) % 7
    log_p, log_q = clean.double().log_softmax(-1), other.double().log_softmax(-1)
    kl, nll = (one.double().sum() for one in Clean(clean.split(piece, 1), next_T).against([other]))
    assert float(kl) == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum()), rel=1e-5)
    assert float(nll) == pytest.approx(-float(log_q.gather(1, next_T[:, None]).sum()), rel=1e-6)


def test_of_equal_logits_it_is_zero():
    logits = torch.randn(50, 10_000, generator=torch.Generator().manual_seed(0)) * 10
    clean = Clean([logits], torch.arange(50))
    kl, nll = (one.double().sum() for one in clean.against([logits.clone()]))
    assert float(kl) == 0
    assert float(nll) == float(clean.nll_T.double().sum())


def test_windows_count_by_their_tokens():
    """The same number from a sweep of edits and from models that are changed by hand; short windows weigh little."""
    lm = tiny("llama")
    windows = [[5, 6, 7], list(range(10, 34)), [40, 41, 42, 43]]
    off = scale(
        [Weights(parameter="model.layers.1.mlp.down_proj.weight", entries=tuple((i, i) for i in range(32)))], 100
    )
    effects = effects_of(lm, windows, [off])
    original = Original()
    original.see(lm, windows)
    with edited(lm, off):
        found = original.kl(lm)
    assert found.sums == pytest.approx(effects.kl[0], abs=1e-6)  # logits in fp32, read in batches of other shapes
    assert found.tokens.tolist() == [2, 23, 3]
    assert found.value == pytest.approx(effects.kl_interval(0).value, rel=1e-5)
    assert found.value == pytest.approx(float(effects.kl[0].sum()) / 28, rel=1e-5)
    assert found.value != pytest.approx(float((found.sums / found.tokens).mean()), rel=1e-3)


def test_scores_of_it_compare_by_token():
    before, after = (Divergence(np.array(sums), np.array([10, 30])).scores() for sums in ([1.0, 2.0], [2.0, 6.0]))
    assert before.value == pytest.approx(3 / 40)
    change = compare(before, after)
    assert change.kind == "difference"
    assert change.interval.value == pytest.approx(5 / 40)

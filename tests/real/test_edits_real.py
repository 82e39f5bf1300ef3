"""Edits on the built-in model: the super activation carries the super weight's effect, massive dims are not just any
dims, and nothing stays behind."""

from __future__ import annotations

import pytest
import torch

import studfinder as sf
from builtins_here import REAL_DTYPE
from studfinder.edits import (
    Activations,
    LargestEntry,
    RandomDims,
    TopDims,
    dims,
    edited,
    massive_value_disruption,
    mean,
    restore_output,
    zero,
)
from studfinder.measures import effects_of
from studfinder.records import SuperWeight
from studfinder.texts import encode, proof_text

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def smollm2() -> sf.LM:
    return sf.load("smollm2", dtype=REAL_DTYPE)


@pytest.fixture(scope="module")
def windows(smollm2) -> list[list[int]]:
    return [ids[:128] for ids in encode(smollm2, proof_text())[0][:4]]


def super_weight(lm: sf.LM) -> SuperWeight:
    """The one a scan proves (see test_scan_real), without the scan."""
    layer, row, col = 11, 507, 1229
    ref = lm.anatomy.layers[layer].writers[0]
    value = float(lm.model.get_parameter(ref.parameter).detach()[row, col])
    return SuperWeight(
        layer=layer, parameter=ref.parameter, index=(row, col), checkpoint_tensor=None, checkpoint_index=None,
        expert=None, row=row, col=col, value=value, input_spike=0, output_spike=0, share=0, score=0, prompt=0,
        position=0, token="",
    )  # fmt: skip


def test_the_super_activation_alone_brings_most_of_the_model_back(smollm2, windows):
    found = super_weight(smollm2)
    without = zero(found)
    back = [*without, *restore_output(smollm2, found)]
    activation = zero(Activations("residual[11]", LargestEntry((507,))))
    effects = effects_of(smollm2, windows, [without, back, activation])
    assert effects.kl_interval(0).low > 0.5
    assert effects.kl_interval(1, minus=0).high < 0
    assert effects.kl_interval(1).value < 0.2 * effects.kl_interval(0).value
    # Taking the massive activation itself away does what taking the weight away does, or worse.
    assert effects.kl_interval(2).value > 0.5 * effects.kl_interval(0).value


def test_massive_dims_matter_more_than_random_ones_and_leave_nothing(smollm2, windows):
    clean = smollm2.model(torch.tensor(windows[:1])).logits
    variants = [massive_value_disruption(smollm2, 1)]
    variants += [mean(dims(smollm2, select=RandomDims(1, seed))) for seed in range(2)]
    effects = effects_of(smollm2, windows, variants)
    for control in range(1, len(variants)):
        assert effects.kl_interval(0, minus=control).low > 0
    with edited(smollm2, mean(dims(smollm2, select=TopDims(1)))):
        assert not torch.equal(smollm2.model(torch.tensor(windows[:1])).logits, clean)
    assert torch.equal(smollm2.model(torch.tensor(windows[:1])).logits, clean)

"""Damage-matched controls: as harmful on neutral text as what they stand beside, or a plain no."""

from __future__ import annotations

import pytest

from studfinder.edits import Activations, Everything, RandomDims, TopDims, dims, mean, noise, scale, zero
from studfinder.errors import StudfinderError
from studfinder.measures import damage_matched, effects_of
from tiny import prompts, tiny


@pytest.mark.parametrize("start", [1e-3, 1.0, 300.0])
def test_noise_elsewhere_is_tuned_to_the_same_damage(start: float) -> None:
    lm, encoded = tiny("llama"), prompts()
    edits = zero(Activations("residual[1]", TopDims(2)))

    def make(std: float):
        return noise(Activations("residual[0]", Everything()), std, seed=1)

    match = damage_matched(lm, encoded, edits, make, start=start)
    assert match.matched
    assert len(match.tried) <= 12
    assert abs(match.kl.value / match.target.value - 1) <= 0.05
    assert match.target.value == pytest.approx(effects_of(lm, encoded, [edits]).kl_interval(0).value, rel=1e-3)
    assert match.kl.value == pytest.approx(
        effects_of(lm, encoded, [make(match.strength)]).kl_interval(0).value, rel=1e-3
    )
    assert match.edits == make(match.strength)
    assert match.difference.value == pytest.approx(match.kl.value - match.target.value, rel=1e-3, abs=1e-6)
    assert match.difference.low < match.difference.value < match.difference.high
    # What was looked for is not what anything gives: ten times the strength does more than the tolerance allows.
    assert effects_of(lm, encoded, [make(10 * match.strength)]).kl_interval(0).value > 1.05 * match.target.value


def test_damage_out_of_reach_is_said_to_be() -> None:
    lm, encoded = tiny("llama"), prompts()
    everything = zero(Activations("residual[2]", Everything()))
    match = damage_matched(lm, encoded, everything, lambda std: noise(dims(lm, select=RandomDims(1)), std))
    assert not match.matched
    assert match.kl.value < match.target.value
    assert len(match.tried) == 12


def test_no_damage_cannot_be_matched() -> None:
    lm = tiny("llama")
    with pytest.raises(StudfinderError, match="no damage to match"):
        damage_matched(lm, prompts(), scale(dims(lm), 1.0), lambda std: noise(dims(lm), std))
    with pytest.raises(StudfinderError, match="above 0"):
        damage_matched(lm, prompts(), mean(dims(lm)), lambda std: noise(dims(lm), std), start=0)

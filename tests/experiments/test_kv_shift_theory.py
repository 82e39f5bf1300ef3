"""Theorem 2 by hand: what it promises and by how much it is only nearly so."""

from __future__ import annotations

import pytest

from studfinder.errors import StudfinderError
from studfinder.experiments import kv_shift_theory, plan_experiment, run_experiment
from studfinder.experiments.kv_shift_theory import TheoremCase, compared


def test_one_layer_copies_and_plain_attention_does_not() -> None:
    found = compared(TheoremCase(length=48, vocabulary=256, width=256, sharpness=20, slope=0.05), sequences=60)
    assert found["shift"] == found["definition"] == 1.0
    assert found["plain"] < 0.1


def test_difference_to_the_definition_is_the_two_extra_terms() -> None:
    def at(sharpness: float) -> dict[str, float]:
        return compared(TheoremCase(length=48, vocabulary=64, width=64, sharpness=sharpness, slope=0.01), sequences=60)

    blunt, sharp = at(10), at(20)
    assert 0 < sharp["largest"] < 1e-6 < blunt["largest"] < 1e-2
    assert blunt["typical"] <= 2 * (blunt["first"] + blunt["last"])


def test_as_an_experiment(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_shift_theory, "SETTINGS", kv_shift_theory.SETTINGS[:1])
    plan = plan_experiment("kv-shift/theory", settings={"sequences": 5})
    result, folder = run_experiment(plan, out=tmp_path / "run")
    (row,) = result.tables[0].rows
    assert row[:5] == (64, 64, 64, 10, 0.01)
    assert row[5:] == tuple(kv_shift_theory.compared(kv_shift_theory.SETTINGS[0], 5).values())
    assert "IH" in (folder / "table.md").read_text()


def test_it_has_no_settings_of_training() -> None:
    with pytest.raises(StudfinderError, match="no setting 'precision'"):
        plan_experiment("kv-shift/theory", settings={"precision": "bf16"})

"""Theorem 2 by hand: what it promises and by how much it is only nearly so."""

from __future__ import annotations

import pytest

from studfinder.attention.kv_shift.theory import Setting, main, measure, page


def test_one_layer_copies_and_plain_attention_does_not() -> None:
    found = measure(Setting(length=48, vocabulary=256, width=256, sharpness=20, slope=0.05), sequences=60)
    assert found["shift"] == found["definition"] == 1.0
    assert found["plain"] < 0.1


def test_difference_to_the_definition_is_the_two_extra_terms() -> None:
    def at(sharpness: float) -> dict[str, float]:
        return measure(Setting(length=48, vocabulary=64, width=64, sharpness=sharpness, slope=0.01), sequences=60)

    blunt, sharp = at(10), at(20)
    assert 0 < sharp["largest"] < 1e-6 < blunt["largest"] < 1e-2
    assert blunt["typical"] <= 2 * (blunt["first"] + blunt["last"])


def test_command(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    import studfinder.attention.kv_shift.theory as theory

    monkeypatch.setattr(theory, "SETTINGS", theory.SETTINGS[:1])
    out = tmp_path / "page.md"
    monkeypatch.setattr("sys.argv", ["theory", "--out", str(out), "--sequences", "5"])
    main()
    assert out.read_text() == page(5)

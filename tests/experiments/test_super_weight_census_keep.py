"""What the census finds, kept in 16 bits, beside smaller groups at equal bits."""

from __future__ import annotations

import pytest
from experimented import run

from proving import provable
from studfinder.records import Comparison, Interval


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_numbers_kept_beside_smaller_groups(architecture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STUDFINDER_CACHE", str(tmp_path / "cache"))
    lm = provable(architecture, planted=True)[0]
    result = run("super-weight/census-keep", lm, tmp_path, block=16, smaller=8, few=5, pieces=3)
    (table,) = result.tables
    rows = {row[0]: row[1:] for row in table.rows}
    plain, beside = rows["groups of 16, nothing"], rows["groups of 8, nothing"]
    assert len(rows) == 2 + 5 * 2
    assert plain[1] == 5.25
    assert beside[1] == 6.5
    assert plain[3] is None
    assert beside[4] is None
    for label, (count, bits, kl, against, smaller) in rows.items():
        assert isinstance(kl, Interval)
        assert label.startswith("groups of 8") or isinstance(smaller, Comparison)
        if count > 5:
            assert bits == pytest.approx(6.5, abs=0.05)
            assert count == max(row[0] for row in rows.values())
        elif count:
            assert 5.25 < bits < 5.6
            assert against.interval.value == pytest.approx(kl.value - plain[2].value)
    many = {label.partition(": ")[2]: row[2].value for label, row in rows.items() if row[0] > 5}
    assert many["the largest F x rounding error"] < many["any"]
    assert sum("at equal bits with groups of 8" in note for note in result.notes) == 5

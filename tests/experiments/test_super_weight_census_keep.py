"""What the census finds, kept in 16 bits, beside smaller groups at equal bits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from experimented import run

from proving import provable
from studfinder.experiments.super_weight_census_keep import _best
from studfinder.records import Comparison, Interval
from studfinder.studies import KL, GridScores


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_numbers_kept_beside_smaller_groups(architecture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STUDFINDER_CACHE", str(tmp_path / "cache"))
    lm = provable(architecture, planted=True)[0]
    monkeypatch.setattr("studfinder.verbs.scan._has_gradients", lambda _: False)  # no census in the scan
    formats = {"formats": "int4:4,int6:16", "shares": "0.01"}
    result = run("super-weight/census-keep", lm, tmp_path, block=16, smaller=8, few=5, pieces=3, **formats)
    (table,) = result.tables
    rows = {row[0]: row[1:] for row in table.rows}
    plain, beside = rows["groups of 16, nothing"], rows["groups of 8, nothing"]
    assert len(rows) == 4 + 5 * 2 + 1 + 4
    assert plain[1] == 5.25
    assert beside[1] == 6.5
    assert rows["int4, groups of 4, nothing"][1] == 9
    assert plain[3] is None
    assert beside[4] is None
    found = [row[0] for label, row in rows.items() if label.partition(": ")[2] in ("the super weights", "any")]
    for label, (count, bits, kl, against, smaller) in rows.items():
        assert isinstance(kl, Interval)
        assert label.startswith("groups of 8") or isinstance(smaller, Comparison)
        if count and count == max(found):
            assert bits == pytest.approx(6.5, abs=0.05)
        elif count == 5:
            assert 5.25 < bits < 5.6
            assert against.interval.value == pytest.approx(kl.value - plain[2].value)
    many = {label.partition(": ")[2]: row[2].value for label, row in rows.items() if row[0] == max(found)}
    assert many["the largest F x rounding error"] < many["any"]
    assert sum("the best plain format that costs no more, groups of" in note for note in result.notes) == 5 + 1 + 4
    proven, chosen = result.claims
    (label,) = [label for label in rows if label.endswith(": the super weights")]
    assert proven.effect == rows[label][3]
    assert proven.number.value == pytest.approx(proven.effect.interval.value - proven.control.interval.value)
    assert chosen.number.value < chosen.control.interval.value


def test_the_plain_format_beside_is_the_best_that_costs_no_more():
    scores = {label: {KL: SimpleNamespace(value=value)} for label, value in {"a": 3, "b": 2, "c": 1, "d": 0}.items()}
    made = {
        label: {"bits": bits} for label, bits in {"a": 4.0, "b": 4.5, "c": 4.1, "d": 4.1008, "kept": 4.1004}.items()
    }
    scored = GridScores(scores=scores, made=made)
    assert _best(scored, "kept", ["a", "b", "c", "d"]) == "d"  # as many to a thousandth of a bit
    made["d"]["bits"] = 4.102
    assert _best(scored, "kept", ["a", "b", "c", "d"]) == "c"
    assert _best(scored, "a", ["a", "b", "c", "d"]) == "a"

"""Steps that are done are not done again, whatever interrupted the run."""

from __future__ import annotations

import pytest

from studfinder.errors import StudfinderError
from studfinder.runs import Ledger


def test_a_step_is_done_once(tmp_path):
    calls = []

    def step():
        calls.append(1)
        return {"a": (1, 2.5)}

    ledger = Ledger(tmp_path / "items.jsonl")
    first = ledger.once("x", step)
    again = Ledger(tmp_path / "items.jsonl").once("x", step)
    assert first == again == {"a": [1, 2.5]}
    assert len(calls) == 1


def test_a_half_written_line_is_done_again_and_loses_nothing_else(tmp_path):
    path = tmp_path / "items.jsonl"
    Ledger(path).once("x", lambda: 1)
    with path.open("ab") as file:
        file.write(b'{"key": "y", "val')
    with pytest.warns(UserWarning, match="line 2 is damaged"):
        ledger = Ledger(path)
    assert ledger.once("y", lambda: 2) == 2
    with pytest.warns(UserWarning, match="line 2 is damaged"):
        later = Ledger(path)
    assert later.values == {"x": 1, "y": 2}


def test_a_step_that_fails_is_not_remembered(tmp_path):
    ledger = Ledger(tmp_path / "items.jsonl")
    with pytest.raises(KeyboardInterrupt):
        ledger.once("x", _interrupted)
    assert ledger.once("x", lambda: 3) == 3


def _interrupted():
    raise KeyboardInterrupt


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    with pytest.raises(StudfinderError, match="cannot be written"):
        Ledger(tmp_path / "missing" / "items.jsonl").once("x", lambda: 1)


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Ledger(None).once("x", lambda: 1) == 1
    assert not list(tmp_path.iterdir())

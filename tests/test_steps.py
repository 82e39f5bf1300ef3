"""Steps that are done are not done again, whatever interrupted the run; and nothing else is taken for one."""

from __future__ import annotations

import json
import random
import warnings

import pytest

from studfinder.errors import WriteFailed
from studfinder.runs import Steps


def test_a_step_is_done_once(tmp_path):
    calls = []

    def step():
        calls.append(1)
        return {"a": (1, 2.5)}

    first = Steps(tmp_path / "steps.jsonl").once("x", step)
    again = Steps(tmp_path / "steps.jsonl").once("x", step)
    assert first == again == {"a": [1, 2.5]}
    assert len(calls) == 1


def test_a_half_written_line_is_done_again_and_loses_nothing_else(tmp_path):
    path = tmp_path / "steps.jsonl"
    Steps(path).once("x", lambda: 1)
    with path.open("ab") as file:
        file.write(b'{"step": "y", "val')
    with pytest.warns(UserWarning, match="line 2 is damaged"):
        steps = Steps(path)
    assert steps.once("y", lambda: 2) == 2
    with pytest.warns(UserWarning, match="line 2 is damaged"):
        later = Steps(path)
    assert later.values == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    ("run", "under", "said"), [("other", "1", "belongs to another run"), ("a", "2", "made with other versions")]
)
def test_steps_of_another_run_or_of_other_versions_are_done_again(tmp_path, run, under, said):
    Steps(tmp_path / "steps.jsonl", "a", "1").once("x", lambda: 1)
    with pytest.warns(UserWarning, match=said):
        steps = Steps(tmp_path / "steps.jsonl", run, under)
    assert steps.once("x", lambda: 3) == 3


def test_a_step_with_one_thing_changed_is_not_believed(tmp_path):
    """A digit, a name, a run, a checksum, a character: two hundred lines with one of them changed."""
    chance = random.Random(0)
    believed = 0
    for number in range(200):
        path = tmp_path / f"{number}.jsonl"
        Steps(path, "run", "1").once(f"step {number}", lambda: {"kl": chance.random(), "n": chance.randrange(1000)})
        entry = json.loads(path.read_text())
        kind = number % 5
        if kind == 0:
            entry["value"]["kl"] += 1e-9
        elif kind == 1:
            entry["value"]["n"] += 1
        elif kind == 2:
            entry["step"] += "'"
        elif kind == 3:
            entry["sum"] = entry["sum"][::-1] + "0"
        line = json.dumps(entry)
        if kind == 4:
            place = chance.randrange(len(line))
            line = line[:place] + chr(33 + (ord(line[place]) - 32) % 90) + line[place + 1 :]
        path.write_text(line + "\n")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            believed += bool(Steps(path, "run", "1").values)
    assert believed == 0


def test_a_step_that_fails_is_not_remembered(tmp_path):
    steps = Steps(tmp_path / "steps.jsonl")
    with pytest.raises(KeyboardInterrupt):
        steps.once("x", _interrupted)
    assert steps.once("x", lambda: 3) == 3


def _interrupted():
    raise KeyboardInterrupt


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    with pytest.raises(WriteFailed, match="cannot be written"):
        Steps(tmp_path / "missing" / "steps.jsonl").once("x", lambda: 1)


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Steps(None).once("x", lambda: 1) == 1
    assert not list(tmp_path.iterdir())

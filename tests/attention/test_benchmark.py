"""The benchmark goes on where it stopped, and never mixes numbers from different conditions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """(main with these arguments, the cells it measured so far, the page)."""
    monkeypatch.syspath_prepend(str(HERE))
    import attention

    measured, real = [], attention.timing

    def timing(*cell):
        measured.append(cell)
        return real(*cell)

    monkeypatch.setattr(attention, "timing", timing)
    page = tmp_path / "speed.md"

    def main(*arguments: str) -> None:
        asked = ["--variants", "kv_shift", "--lengths", "8", "--rounds", "2", *arguments, "--out", str(page)]
        monkeypatch.setattr("sys.argv", ["attention.py", *asked])
        attention.main()

    return main, measured, page


def test_a_run_goes_on_where_the_last_one_stopped(run) -> None:
    main, measured, page = run
    main("--work", "forward")
    main("--work", "forward", "decode")
    assert [cell[:3] for cell in measured] == [("kv_shift", "forward", 8), ("kv_shift", "decode", 8)]
    numbers = json.loads(page.with_suffix(".json").read_text())
    result = numbers["time"]["decode"]["kv_shift"]["8"]
    assert 0 < result["low"] <= result["ratio"] <= result["high"]
    text = page.read_text()
    assert f"| kv_shift | {result['ratio']:.2f} [" in text.partition("## decode")[2]
    assert "| gated, mlp | not run |" in text
    main("--work", "decode", "--again")
    assert len(measured) == 3


def test_numbers_of_other_conditions_are_not_mixed(run, monkeypatch: pytest.MonkeyPatch) -> None:
    main, measured, page = run
    main("--work", "forward")
    before = page.with_suffix(".json").read_text()
    monkeypatch.setattr(torch, "__version__", "0.0")
    with pytest.raises(SystemExit, match=r"--overwrite"):
        main("--work", "forward")
    assert page.with_suffix(".json").read_text() == before
    main("--work", "decode", "--overwrite")
    assert list(json.loads(page.with_suffix(".json").read_text())["time"]) == ["decode"]
    assert len(measured) == 2

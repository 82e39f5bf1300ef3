"""The files in examples/: they run where they can be run, and say no option that there is not."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from proving import provable
from studfinder.cli.app import run_cli

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_one_job_a_model_and_a_report_over_all(tmp_path):
    """With submitit's executor for this machine."""
    pytest.importorskip("submitit", reason="submitit is not installed")
    lm = provable("llama", planted=False)[0]
    for name in ("one", "two"):
        lm.model.save_pretrained(tmp_path / name)
        lm.tokenizer.save_pretrained(tmp_path / name)
    words = [sys.executable, EXAMPLES / "slurm.py", "./one", "two", "gone", "--root", "shared", "--cluster", "local"]
    words += ["--cpus", "1", "--memory", "1", "--", "measure", "--measures", "perplexity", "--limit", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert "./one: done\ntwo: done\ngone: failed, see " in done.stdout
    assert "scorecards side by side" in done.stdout
    assert (tmp_path / "shared/report/report.html").is_file()
    runs = list((tmp_path / "shared/runs").glob("*/measure-*"))
    assert len(runs) == 2


@pytest.mark.parametrize("name", ["slurm.py", "skypilot.yaml"])
def test_the_commands_that_examples_name_are_understood(name, tmp_path, monkeypatch, capfd):
    """Every line with studfinder in it, as far as --help: an option that there is not would be said first."""
    monkeypatch.chdir(tmp_path)
    text = (EXAMPLES / name).read_text("utf-8")
    lines = re.findall(r"^[#\s]*studfinder (.*)$", text, flags=re.MULTILINE)
    lines += [line.partition(" -- ")[2] for line in text.splitlines() if " -- " in line and "python examples" in line]
    assert lines
    for line in lines:
        words = shlex.split(line.replace("$MODEL", "m"), comments=True)
        assert run_cli([*words, *(["m"] if words[-1] == "--model" else []), "--help"]) == 0, line
    capfd.readouterr()

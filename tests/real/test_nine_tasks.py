"""The nine tasks of docs/tasks.md on the built-in model, with less text than one would give them: each command as it
stands there, and the answer that it is run for."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import studfinder as sf
from builtins_here import REAL_DTYPE
from studfinder.cli.app import run_cli
from studfinder.records import Findings, Plan, Result, Scorecard
from studfinder.runs import read

pytestmark = [pytest.mark.real, pytest.mark.deep]
PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"
DTYPE = ["--dtype", REAL_DTYPE]
LESS = {
    "plan": [*DTYPE, "--windows", "2", "--judges", "4"],
    "quantize": [*DTYPE, "--samples", "4", "--length", "128"],
    "measure": [*DTYPE, "--limit", "4"],
    "scan": [*DTYPE, "--no-prove", "--prompt", "The quick brown fox jumps over the lazy dog."],
    "experiment": [*DTYPE, "--set", "limit=4"],
    "diagnose": [*DTYPE, "--limit", "2", "--window", "64", "--most", "2"],
}
"""What makes a command short."""


def commands(title: str) -> list[list[str]]:
    """What docs/tasks.md says under a title."""
    section = PAGE.read_text("utf-8").partition(f"## {title}\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL)
    found = [shlex.split(line, comments=True) for line in block.splitlines() if line.startswith("studfinder ")]
    assert 1 <= len(found) <= 3
    return [words[1:] for words in found]


def carried_out(title: str, tmp_path: Path, monkeypatch, **names: str) -> list[int]:
    """Run a task's commands in a folder; the exit codes."""
    monkeypatch.chdir(tmp_path)
    names = {"./my-model": "smollm2", **names}
    codes = []
    for words in commands(title):
        given = [names.get(word, word) for word in words]
        codes.append(run_cli([*given, *LESS.get(given[0], [])]))
    return codes


def test_will_four_bits_hurt_my_model(tmp_path, monkeypatch):
    assert carried_out("Will 4 bits hurt my model?", tmp_path, monkeypatch) == [0, 0]
    plan = read(tmp_path / "runs" / "plan", Plan)
    assert {one.tool for one in plan.solutions} == {"llm-compressor", "gptqmodel", "llama.cpp"}
    for one in plan.solutions:
        assert one.kl is not None
        assert one.kl.low < one.kl.value < one.kl.high


def test_the_best_checkpoint_for_vllm_and_what_was_lost(tmp_path, monkeypatch):
    assert carried_out("The best 4-bit checkpoint for vLLM", tmp_path, monkeypatch) == [0, 0, 0]
    (card,) = tmp_path.glob("runs/my-w4/measure-*/scorecard.json")
    found = sf.runs.read(card, Scorecard)
    assert found.measured


def test_the_picture_of_massive_activations(tmp_path, monkeypatch):
    assert carried_out("The massive-activation picture of my model", tmp_path, monkeypatch) == [0, 0]
    assert read(tmp_path / "runs" / "mine", Findings).massive_activations[0].dim == 507
    (result,) = tmp_path.glob("runs/smollm2/massive-activations-where-*/result.json")
    assert read(result, Result).tables
    assert any(result.parent.glob("figure-*.png"))


def test_base_against_instruct(tmp_path, monkeypatch):
    folder = tmp_path / "changed"
    model = sf.load("smollm2").model
    model.save_pretrained(folder)
    sf.load("smollm2").tokenizer.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.11.mlp.down_proj.weight"][507, 1229] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    names = {"./base": "smollm2", "./instruct": str(folder)}
    assert carried_out("Base against instruct", tmp_path, monkeypatch, **names) == [0, 0, 0]
    first, second = (read(tmp_path / "runs" / name, Findings) for name in ("base", "instruct"))
    assert (11, 507, 1229) in {(one.layer, one.row, one.col) for one in first.super_weights}
    assert (11, 507, 1229) not in {(one.layer, one.row, one.col) for one in second.super_weights}
    assert (tmp_path / "runs" / "both" / "report.html").stat().st_size > 10_000


def test_outliers_in_my_own_trainer(tmp_path):
    section = PAGE.read_text("utf-8").partition("## Outliers in my own Trainer\n")[2].partition("\n## ")[0]
    assert "sf.training.OutlierCallback()" in section  # which tests/test_train_outliers.py passes to a Trainer


def test_a_gate_in_ci(tmp_path, monkeypatch):
    assert run_cli(["quantize", "smollm2", "--group", "channel", "--out", str(tmp_path / "w4")]) == 0
    assert carried_out("A gate in CI", tmp_path, monkeypatch, **{"./my-w4": str(tmp_path / "w4")}) == [1, 0]
    names = {"./my-w4": "smollm2"}
    assert carried_out("A gate in CI", tmp_path, monkeypatch, **names) == [0, 0]


def test_publish_model_and_report(tmp_path, monkeypatch):
    from test_publish import StandIn

    monkeypatch.setattr("huggingface_hub.HfApi", lambda: StandIn(tmp_path / "hub"))
    plan = ["plan", "smollm2", "--bits", "4.5", *LESS["plan"], "--out", str(tmp_path / "runs" / "plan")]
    assert run_cli(plan) == 0
    assert carried_out("Publish model and report", tmp_path, monkeypatch) == [0, 0]
    assert {"model.safetensors", "README.md"} <= {one.name for one in (tmp_path / "hub" / "me" / "my-w4").iterdir()}
    assert (tmp_path / "runs" / "lost" / "report.html").is_file()


def test_llama_to_kv_shift(tmp_path, monkeypatch):
    text = tmp_path / "books.txt"
    text.write_text("\n\n".join(piece.text for piece in sf.texts.proof_text()), "utf-8")
    short = ["--precision", "fp32", "--batch", "1", "--length", "64"]
    monkeypatch.setitem(LESS, "train", short)
    assert carried_out("Llama to KV shift, and a hundred steps on my text", tmp_path, monkeypatch) == [0, 0]
    record = json.loads((tmp_path / "runs" / "shifted" / "result.json").read_text("utf-8"))
    assert record["loss"] is not None

"""--config: options from a file or an earlier run; -q."""

from __future__ import annotations

import json

import pytest

from checkpoints import checkpoint
from studfinder.cli.app import run_cli
from studfinder.cli.given import with_config
from studfinder.errors import StudfinderError


def test_options_come_from_a_file_and_what_is_given_counts(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "command: plan\nmodel: ./mine\nbits: 4.5\nfor: [mlx, llama.cpp]\nchat_template: true\nprove: false\n"
    )
    kept = ["plan", "./mine", "--bits", "4.5", "--for", "mlx", "--for", "llama.cpp", "--chat-template", "--no-prove"]
    assert with_config(["--config", str(file)]) == kept
    assert with_config([f"--config={file}", "plan", "--bits", "5"]) == [*kept, "--bits", "5"]
    assert with_config(["scan", "x"]) == ["scan", "x"]
    with pytest.raises(StudfinderError, match="is of studfinder plan, not of scan"):
        with_config(["scan", "--config", str(file)])


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", "model: x", "command: 3", "command: ''", "a: [", "1: 2", "command: scan\nx: {a: 1}"]
)
def test_a_file_that_holds_no_options_is_refused(tmp_path, text):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(StudfinderError):
        with_config(["--config", str(file)])
    with pytest.raises(StudfinderError):
        with_config(["scan", "--config", str(tmp_path / "none")])
    with pytest.raises(StudfinderError, match="names no file"):
        with_config(["scan", "--config"])


def test_the_record_of_a_run_gives_its_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["studfinder", "scan", str(checkpoint(tmp_path / "m")), "--no-prove", "--out", "x"])
    monkeypatch.chdir(tmp_path)
    assert run_cli(["scan", str(tmp_path / "m"), "--no-prove", "--out", "x"]) == 0
    kept = ["scan", str(tmp_path / "m"), "--no-prove"]
    assert with_config(["--config", "x"]) == with_config(["--config", "x/findings.json"]) == kept
    assert run_cli(["scan", "--config", "x", "--out", "y", "-q"]) == 0
    assert (tmp_path / "y" / "findings.json").is_file()
    record = json.loads((tmp_path / "x" / "findings.json").read_text())
    record["run"]["command"] = "sf.scan(model)"
    (tmp_path / "python.json").write_text(json.dumps(record))
    assert run_cli(["scan", "--config", str(tmp_path / "python.json")]) == 2
    assert "was made in Python" in capsys.readouterr().err


def test_every_short_help_is_a_whole_sentence(capsys):
    assert run_cli(["--help"]) == 0
    said = capsys.readouterr().out
    assert "..." not in said.replace("[ARGS]...", "")
    for verb in ("scan", "plan", "quantize", "train"):
        assert run_cli([verb, "--help"]) == 0
        help = capsys.readouterr().out
        assert "<list[" not in help

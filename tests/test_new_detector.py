"""The recipe of CONTRIBUTING.md for a new detector, followed to the letter in a copy of the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import studfinder
from proving import provable, tokenizer
from studfinder.records import Findings, from_json, read_record, to_json

HERE = Path(studfinder.__file__).parent
RECIPE = (
    (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text().split("## A new detector\n")[1].split("\n## ")[0]
)


@pytest.mark.real  # a whole scan with its page
def test_a_new_detector_is_one_file_and_one_line(tmp_path: Path) -> None:
    content, line = re.findall(r"```python\n(.*?)```", RECIPE, re.DOTALL)
    file, registry = re.findall(r"`src/studfinder/([\w/]+\.py)`", RECIPE)[:2]
    shutil.copytree(HERE, tmp_path / "studfinder", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "studfinder" / file).write_text(content)
    names = tmp_path / "studfinder" / registry
    before, after = names.read_text().split("DETECTORS = {\n")
    entries, rest = after.split("}\n", 1)
    names.write_text(f"{before}DETECTORS = {{\n{entries}{line}}}\n{rest}")

    lm, _ = provable("llama", planted=False)
    loud = tokenizer().encode("Q")[0]
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[loud] *= 1e3
    lm.model.save_pretrained(tmp_path / "m")
    tokenizer().save_pretrained(tmp_path / "m")
    prompts = ["--prompt", "A quick brown Q.", "--prompt", "Another one, and longer."]
    ended = subprocess.run(
        [sys.executable, "-m", "studfinder", "scan", "m", "--out", "s", "--no-prove", "--batch-size", "2", *prompts],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "STUDFINDER_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr

    findings = read_record(Findings, tmp_path / "s" / "findings.json")
    places = {(one["layer"], one["prompt"], one["position"], one["token"]) for one in findings.others["loud_tokens"]}
    assert places == {(layer, 0, 14, "Q") for layer in range(-1, 3)}
    assert from_json(Findings, to_json(findings)) == findings  # also where the detector is not known: here
    assert re.search(r"loud tokens +4 entries", ended.stdout)
    page = (tmp_path / "s" / "report.html").read_text()
    assert "<h3>Loud tokens</h3>" in page
    assert page.count("<td>Q</td>") == 4
    assert list(findings.to_frame("loud_tokens").columns) == ["layer", "prompt", "position", "token", "ratio"]

"""The recipes of CONTRIBUTING.md, each followed to the letter in a copy of the package: a file, a line, a command."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import studfinder
from proving import provable, tokenizer

PAGE = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
RECIPES = {
    title: part
    for title, part in re.findall(r"^## (A new [\w ]+)\n(.*?)(?=^## )", PAGE, re.M | re.S)
    if "```sh" in part
}


def measured(record: dict[str, Any], folder: Path) -> None:
    (line,) = record["measured"]
    assert line["measure"] == "first-guess"
    assert line["score"]["n"] == 3


def rounded(record: dict[str, Any], folder: Path) -> None:
    assert "dithered" in json.dumps(record).lower()
    assert record["bits"] == pytest.approx(4 + (32 + 4) / 16)  # a scale in the model's own type, and a zero point
    assert record["verified"]


def trained(record: dict[str, Any], folder: Path) -> None:
    assert record["run"]["settings"]["attention"] == "head_scale"
    assert json.loads((folder / "t" / "model" / "config.json").read_text())["studfinder"]


def tabled(record: dict[str, Any], folder: Path) -> None:
    (table,) = record["tables"]
    assert [row[0] for row in table["rows"]] == ["layer 0", "layer 1", "layer 2"]
    assert record["run"]["settings"]["pieces"] == 2
    assert (folder / "e" / "figure-skipped.svg").is_file()


CHECKS: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "A new measure": measured,
    "A new quantiser": rounded,
    "A new attention variant": trained,
    "A new experiment": tabled,
}


def test_every_recipe_is_followed():
    assert RECIPES.keys() == CHECKS.keys()


@pytest.mark.real  # a process each
@pytest.mark.parametrize("title", CHECKS)
def test_one_file_and_one_line(title: str, tmp_path: Path) -> None:
    content, line = re.findall(r"```python\n(.*?)```", RECIPES[title], re.DOTALL)
    (command,) = re.findall(r"```sh\n(.*?)\n```", RECIPES[title], re.DOTALL)
    file, registry = re.findall(r"`src/studfinder/([\w/]+\.py)`", RECIPES[title])[:2]
    (name,) = re.findall(r"one line in `([A-Z]+)`", RECIPES[title])
    package = tmp_path / "studfinder"
    shutil.copytree(Path(studfinder.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    assert not (package / file).exists()
    (package / file).write_text(content)
    known = (package / registry).read_text()
    added = re.sub(rf"(^{name}\b[^\n]*{{\n)", lambda found: found[0] + line, known, flags=re.MULTILINE)
    assert added != known
    (package / registry).write_text(added)
    lm, _ = provable("llama", planted=False)
    lm.model.save_pretrained(tmp_path / "m")
    tokenizer().save_pretrained(tmp_path / "m")
    ended = subprocess.run(
        [sys.executable, "-m", *shlex.split(command)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "STUDFINDER_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    CHECKS[title](json.loads(ended.stdout), tmp_path)

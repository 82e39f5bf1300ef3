"""What docs/results/build.py keeps of a run."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "docs" / "results" / "build.py"


@pytest.fixture
def script(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("build_pages", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "HERE", tmp_path / "docs")
    return module


def run_with(folder: Path, **more: str) -> Path:
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps({"name": "kind/small", "models": [], **more}))
    (folder / "table.md").write_text("# kind\n")
    return folder


def test_a_large_figure_is_kept_smaller(tmp_path, script, capsys):
    folder = run_with(tmp_path / "run")
    noise = np.random.default_rng(0).integers(0, 255, (400, 500, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "figure-steps.png")
    assert (folder / "figure-steps.png").stat().st_size > script.LARGEST
    script.collect(folder)
    kept = tmp_path / "docs" / "runs" / "kind-small"
    assert 0 < (kept / "figure-steps.png").stat().st_size <= script.LARGEST
    with Image.open(kept / "figure-steps.png") as picture:
        assert picture.size == (500, 400)
    assert "figure-steps.png" in capsys.readouterr().out


def test_what_is_left_out_is_said(tmp_path, script, capsys):
    folder = run_with(tmp_path / "run", data="x" * 500_000)
    script.collect(folder)
    assert sorted(path.name for path in (tmp_path / "docs" / "runs" / "kind-small").iterdir()) == ["table.md"]
    assert "result.json: 500,04" in capsys.readouterr().out

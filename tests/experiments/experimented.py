"""Run an experiment on a tiny model in a folder of its own, and see that a second run does no step again."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

from rerun import interrupted
from studfinder.experiments import plan_experiment, run_experiment
from studfinder.models import LM
from studfinder.records import Result, from_json, to_json


def run(name: str, lm: LM, folder: Path, **settings: Any) -> Result:
    """The result of a finished experiment. Its figures were drawn, its page written, and it resumes."""
    plan = plan_experiment(name, ["tiny"], settings=settings)
    result, out = run_experiment(plan, out=folder / name, loader=lambda _: lm)
    steps = (out / "steps.jsonl").read_bytes()
    assert steps, "no step is remembered"
    interrupted(out)
    with patch("studfinder.experiments.run.draw_into"):  # drawing is most of a small run, and was done
        again, _ = run_experiment(plan, out=folder / name, loader=lambda _: lm)
    assert (out / "steps.jsonl").read_bytes() == steps, "a finished step was done again"
    assert to_json(again.tables[0]) == to_json(result.tables[0])
    assert again.notes == result.notes
    assert (out / "table.md").is_file()
    assert to_json(from_json(Result, (out / "result.json").read_text())) == to_json(again)
    drawn(result, out)
    return result


def drawn(result: Result, folder: Path) -> None:
    """Each figure is in the page, for wide screens and narrow ones: none is missing because it could not be drawn."""
    figures = list(folder.glob("figure-*.png"))
    assert len(figures) >= max(1, len(result.charts))
    page = (folder / "report.html").read_text("utf-8")
    assert [page.count(f'<svg class="chart {size}"') for size in ("wide", "narrow")] == [len(figures)] * 2

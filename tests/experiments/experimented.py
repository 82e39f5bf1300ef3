"""Run an experiment on a tiny model in a folder of its own, and see that a second run does no step again."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

from rerun import interrupted
from studfinder.experiments import plan_experiment, run_experiment
from studfinder.models import LM
from studfinder.records import Result, from_json, to_json
from studfinder.report.charts import draw_chart
from studfinder.report.style import NARROW, styled


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
    assert (out / "report.html").is_file()
    back = from_json(Result, (out / "result.json").read_text())
    with styled():
        for chart in back.charts:
            assert draw_chart(chart, NARROW).axes
    assert list(out.glob("figure-*.svg"))
    return result

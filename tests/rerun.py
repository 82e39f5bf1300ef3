"""Finished runs put back to where an interruption would have left them."""

from __future__ import annotations

import json
from pathlib import Path

from studfinder.runs import Run, write_text
from studfinder.runs.run import partial_path


def interrupted(folder: Path, lost: int = 0) -> Path:
    """Turn a finished run into an interrupted one, without its last `lost` steps; returns the folder it is in."""
    partial = partial_path(folder)
    folder.rename(partial)
    manifest = json.loads((partial / "run.json").read_text())
    (partial / "run.json").write_text(json.dumps({**manifest, "state": "working", "files": []}))
    for name in ("findings.json", "scorecard.json", "result.json"):
        (partial / name).unlink(missing_ok=True)
    if lost:
        steps = partial / "steps.jsonl"
        steps.write_text("".join(steps.read_text().splitlines(keepends=True)[:-lost]))
    return partial


def put(run: Run, text: str) -> None:
    """Let a run be finished with this result."""
    with run.work() as work:
        write_text(work.path / run.result, text)

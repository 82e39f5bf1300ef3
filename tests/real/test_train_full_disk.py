"""`studfinder train` on a disk that really is full, wherever in the run that happens.

The disk is a tmpfs of a few hundred kilobytes in a mount namespace of its own, which needs no root where the system
allows user namespaces. A limit on the size of files (RLIMIT_FSIZE) would not be the same: it has another errno, and a
disk that is full also refuses the small files that come after a large one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.real

SIZES = [16, 80, 120, 236, 300, 400, 440, 468, 500, 540, 552]
"""Kilobytes: the run needs about 560, so that each of its files is once the one that does not fit."""

PROGRAM = """
import contextlib, io, json, subprocess, sys
from pathlib import Path
from studfinder.cli.app import run_cli

place = Path(sys.argv[1])
options = ["--task", "recall:vocabulary=32,length=16,pairs=2", "--layers", "1", "--hidden", "32", "--heads", "2"]
options += ["--batch", "4", "--test", "4", "--steps", "4", "--look-every", "2", "--no-tensorboard"]
for size in json.loads(sys.argv[2]) + [4000]:
    subprocess.run(["mount", "-o", f"remount,size={size}k", str(place)], check=True)
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = run_cli(["train", *options, "--out", str(place / f"run")])
    folder = next((place / name for name in ("run", "run.partial") if (place / name).is_dir()), place / "none")
    line = {"size": size, "code": code, "said": said.getvalue().splitlines()[-1]}
    line["files"] = sorted(path.name for path in folder.glob("*"))
    line["checkpoints"] = sorted(path.name for path in folder.glob("checkpoints/*"))
    line["whole"] = sorted(path.parent.name for path in folder.glob("checkpoints/*/studfinder.json"))
    print("SEEN " + json.dumps(line), flush=True)
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What each size of disk came to; the folder stays, so that each run goes on where the one before it ended."""
    place = tmp_path_factory.mktemp("disk")
    mount = f"mount -t tmpfs -o size=16k tmpfs {place}"
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "sh", "-c", mount]).returncode:
        pytest.skip("this system lets nobody mount a small disk of his own (unshare -rm)")
    program = place.parent / "fill.py"
    program.write_text(PROGRAM)
    command = f"{mount} && exec {sys.executable} {program} {place} '{json.dumps(SIZES)}'"
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command],
        env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("SEEN ")]
    assert len(lines) == len(SIZES) + 1, done.stderr[-3000:]
    return lines


def test_a_full_disk_is_one_clear_line_and_leaves_nothing_half_written(seen):
    for line in seen[:-1]:
        assert line["code"] == 2, line
        assert line["said"].startswith("studfinder: error: "), line
        assert "(No space left on device)" in line["said"], line
        assert line["checkpoints"] == line["whole"], line
        assert ".model" not in line["files"], line
        assert "result.json" not in line["files"], line


def test_what_was_whole_is_kept_and_gone_on_from(seen):
    kept = [line["whole"] for line in seen]
    assert kept[0] == []
    assert kept[-1] == ["checkpoint-2", "checkpoint-4"]
    assert kept == sorted(kept)  # none is lost on the way
    assert seen[-1]["code"] == 0, seen[-1]
    assert {"model", "result.json"} <= set(seen[-1]["files"])

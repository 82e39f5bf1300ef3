"""Two processes train one model: `accelerate launch` on CPUs.

`accelerate launch --cpu --num_processes 2` starts a single process unless there is an MPI; `--multi_gpu` is what
chooses torchrun, and without a GPU the processes meet over gloo.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from studfinder.records import read_record
from studfinder.training import Training

pytestmark = pytest.mark.real
OPTIONS = [
    "--task",
    "induction:vocabulary=40,length=16",
    "--layers",
    "1",
    "--hidden",
    "16",
    "--heads",
    "2",
    "--attention",
    "kv_shift",
]
RECIPE = ["--batch", "8", "--steps", "8", "--look-every", "4", "--test", "10", "--no-tensorboard"]


def launched(folder: Path, *options: str, processes: int) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    alone = [sys.executable] if processes == 1 else command
    source = str(Path(__file__).parents[2] / "src")
    return subprocess.run(
        [*alone, "-m", "studfinder", "train", *OPTIONS, *RECIPE, "--out", str(folder), *options],
        env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_two_processes_train_the_same_model_as_one(tmp_path):
    one = launched(tmp_path / "one", processes=1)
    two = launched(tmp_path / "two", processes=2)
    assert one.returncode == two.returncode == 0, two.stderr[-3000:]
    alone, together = (read_record(Training, tmp_path / name / "result.json") for name in ("one", "two"))
    assert (alone.processes, together.processes) == (1, 2)
    # The same sequences in each step: equal up to rounding.
    for name in ("loss", "eval_loss", "outliers/inf_norm"):
        for (step, a), (also, b) in zip(alone.curve(name), together.curve(name), strict=True):
            assert step == also
            assert a == pytest.approx(b, rel=1e-3), (name, step)
    # 10 test sequences do not divide by 2 and 4: none is counted twice.
    assert alone.accuracy.n == together.accuracy.n == 10
    assert two.stderr.count("step 8/8") == 1
    assert two.stdout.count("accuracy") == 1
    again = launched(tmp_path / "two", processes=2)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "step" not in again.stderr

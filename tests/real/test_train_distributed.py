"""Two processes train one model: `accelerate launch` on CPUs, each with a copy of it or with half of it.

`accelerate launch --cpu --num_processes 2` starts a single process unless there is an MPI; `--multi_gpu` is what
chooses torchrun, and without a GPU the processes meet over gloo.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import studfinder as sf
from rerun import interrupted
from studfinder.records import Training, read_record

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


SHARDED = ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
SHARDED += ["--fsdp_state_dict_type", "FULL_STATE_DICT", "--fsdp_cpu_ram_efficient_loading", "false"]


def launched(folder: Path, *options: str, processes: int, sharded: bool = False) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    command += SHARDED if sharded else ["--multi_gpu"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    alone = [sys.executable] if processes == 1 else command
    program = [str(Path(__file__).parents[1] / "sharded.py")] if sharded else ["-m", "studfinder"]
    source = str(Path(__file__).parents[2] / "src")
    return subprocess.run(
        [*alone, *program, "train", *OPTIONS, *RECIPE, "--out", str(folder), *options],
        env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """What one process trains."""
    folder = tmp_path_factory.mktemp("alone") / "one"
    done = launched(folder, processes=1)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_two_processes_train_the_same_model_as_one(one, tmp_path):
    two = launched(tmp_path / "two", processes=2)
    assert two.returncode == 0, two.stderr[-3000:]
    alone, together = (read_record(Training, folder / "result.json") for folder in (one, tmp_path / "two"))
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
    assert "step 8/8" not in again.stderr


WAIT = """
import datetime, os, time, torch
from studfinder.verbs.train import _first_process_first

torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=5))
with _first_process_first():
    if os.environ["RANK"] == "0":
        time.sleep(8)
    print("ready", os.environ["RANK"], flush=True)
torch.distributed.destroy_process_group()
"""


def test_processes_wait_longer_for_a_text_than_for_each_other(tmp_path):
    (tmp_path / "wait.py").write_text(WAIT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*command, str(tmp_path / "wait.py")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["ready", "0", "ready", "1"]


def test_a_sharded_model_trains_is_looked_at_resumes_and_is_written_whole(one, tmp_path):
    folders = (one, tmp_path / "two")
    two = launched(folders[1], processes=2, sharded=True)
    assert two.returncode == 0, two.stderr[-3000:]

    def same():
        alone, together = (read_record(Training, folder / "result.json") for folder in folders)
        assert (alone.processes, together.processes) == (1, 2)
        for name in ("loss", "eval_loss", "outliers/inf_norm", "outliers/kurtosis"):
            assert together.curve(name), name
            assert [value for _, value in together.curve(name)] == pytest.approx(
                [value for _, value in alone.curve(name)], rel=1e-3
            )
        weights = [load_file(folder / "model" / "model.safetensors") for folder in folders]
        assert weights[0].keys() == weights[1].keys()
        for name, tensor in weights[0].items():
            torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-6)

    same()
    assert sf.load(tmp_path / "two" / "model").anatomy.vocabulary
    partial = interrupted(tmp_path / "two")
    shutil.rmtree(partial / "model")
    shutil.rmtree(partial / "checkpoints" / "checkpoint-8")
    again = launched(tmp_path / "two", processes=2, sharded=True)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "step 4/8" not in again.stderr
    same()

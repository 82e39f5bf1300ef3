"""One Slurm job a model, all with the same command; afterwards one report over all of them.

    pip install studfinder submitit
    python examples/slurm.py Qwen/Qwen3-8B Qwen/Qwen3-14B ./mine --root /shared/sweep --partition cpu -- scan
    python examples/slurm.py smollm2 gemma3-270m --root /shared/sweep -- experiment super-weight/ablation --model

The model's name is put behind the last word. `--root` is a folder that all machines see: each job works there, so that
run folders, which are named by what they are made of, end up side by side in `runs/`. The same command again skips what
is complete and goes on with what was begun; so does Slurm itself with a job that was preempted or ran out of time.
Models of the hub are fetched once, here, before anything is submitted; jobs ask the hub for nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit


@dataclass
class Command:
    """studfinder with some words, in a folder."""

    words: list[str]
    root: Path

    def __call__(self) -> None:
        """Run it. What it prints is in the job's log."""
        offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
        subprocess.run([sys.executable, "-m", "studfinder", *self.words], cwd=self.root, env=offline, check=True)

    def checkpoint(self) -> Any:
        """What submitit asks of a job that is stopped: the same again, which goes on where this one was."""
        return submitit.helpers.DelayedSubmission(self)


def fetched(model: str) -> str:
    """A model's name as a job finds it: a folder by its whole path, one of the hub when it is in the cache."""
    if os.path.exists(model):
        return str(Path(model).resolve())
    if "/" in model:
        from huggingface_hub import snapshot_download

        snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"])
    return model


def main() -> int:
    """Submit, wait, report. Exit code 1 if a job failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--root", type=Path, required=True, help="a folder that all machines see")
    parser.add_argument("--partition", help="of Slurm")
    parser.add_argument("--cpus", type=int, default=8, help="a job")
    parser.add_argument("--gpus", type=int, default=0, help="a job")
    parser.add_argument("--memory", type=int, default=32, help="GB a job")
    parser.add_argument("--hours", type=float, default=8, help="a job, before it is begun again")
    parser.add_argument("--at-once", type=int, default=16, help="jobs")
    parser.add_argument("--cluster", choices=["slurm", "local", "debug"], help="local, debug: without Slurm")
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    own, words = parser.parse_args(sys.argv[1:split]), sys.argv[split + 1 :] or ["scan"]

    root = own.root.resolve()
    (root / "runs").mkdir(parents=True, exist_ok=True)
    executor = submitit.AutoExecutor(root / "jobs", cluster=own.cluster)
    executor.update_parameters(
        name="studfinder",
        timeout_min=int(60 * own.hours),
        cpus_per_task=own.cpus,
        mem_gb=own.memory,
        gpus_per_node=own.gpus,
        slurm_array_parallelism=own.at_once,
        **({"slurm_partition": own.partition} if own.partition else {}),
    )
    models = [fetched(model) for model in own.models]
    with executor.batch():  # one array
        jobs = [executor.submit(Command([*words, model], root)) for model in models]
    failed = []
    for model, job in zip(own.models, jobs, strict=True):
        error = job.exception()
        print(f"{model}: {'done' if error is None else f'failed, see {job.paths.stderr}'}", flush=True)
        failed += [model] * (error is not None)

    verb = words[1].replace("/", "-") if words[0] == "experiment" else words[0]
    places = (path.parent for path in (root / "runs").glob(f"*/{verb}-*/run.json"))
    runs = sorted(place for place in places if place.suffix != ".partial")
    if runs:
        report = [sys.executable, "-m", "studfinder", "report", *map(str, runs)]
        subprocess.run([*report, *(["--out", str(root / "report")] if len(runs) > 1 else [])], check=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

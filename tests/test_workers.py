"""Workers: what they do is what one process does alone, whatever becomes of them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import spreading
from proving import provable
from spreading import CrewHere
from studfinder.cli.app import run_cli
from studfinder.errors import StudfinderError
from studfinder.experiments import EXPERIMENTS, experiment_named
from studfinder.experiments.run import ExperimentPlan, experiment, run_experiment
from studfinder.models import load
from studfinder.records import Result
from studfinder.studies.processes import ProcessCrew
from studfinder.studies.workers import Crew, crew_of
from studfinder.verbs.measure import measure

PLACE = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
"""Where a process of its own finds the experiment."""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    lm = provable("llama", planted=False)[0]
    folder = tmp_path_factory.mktemp("models") / "m"
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def alone(model, tmp_path_factory) -> tuple[Result, dict[str, Any]]:
    """The result of one process, and its steps."""
    folder = tmp_path_factory.mktemp("alone")
    return made(model, folder), steps(folder)


@pytest.fixture(autouse=True)
def undrawn(monkeypatch) -> None:
    """Drawing is most of a small run."""
    monkeypatch.setattr("studfinder.experiments.run.draw_into", lambda *_: None)


def made(model: Path, folder: Path, crew: Crew | None = None, *, mixed: bool = False, **settings: Any) -> Result:
    config = spreading.SpreadingConfig(**settings)
    plan = ExperimentPlan(spreading, spreading.EXPERIMENT, (str(model),), config)
    more: dict[str, Any] = {"progress": settings.pop("progress", None)}
    return run_experiment(plan, out=folder / "run", crew=crew, mixed=mixed, loader=load, **more)[0]


def steps(folder: Path) -> dict[str, Any]:
    """Every step but for how long it took, and for who did it."""
    place = next(folder.glob("run*/steps.jsonl"))
    entries = map(json.loads, place.read_text().splitlines())
    return {one["step"]: _timeless(one["value"]) for one in entries if not one["step"].startswith("worker ")}


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(one) for name, one in value.items() if name != "seconds"}
    return [_timeless(one) for one in value] if isinstance(value, list) else value


def same(result: Result, folder: Path, alone: tuple[Result, dict[str, Any]]) -> None:
    """All that one process found, bit for bit, and nothing else but the parts of the sweep."""
    assert result.tables == alone[0].tables
    found = steps(folder)
    assert {name: found[name] for name in alone[1]} == alone[1]
    assert all("one edit at a time" in name for name in set(found) - set(alone[1]))


@pytest.mark.parametrize(
    ("count", "loses"),
    [(1, ()), (2, ()), (2, ((1, 1),)), (2, ((2, 4),)), (5, ((2, 2), (3, 7), (4, 3), (5, 9)))],
)
def test_any_number_of_workers_does_what_one_process_does(model, alone, tmp_path, count, loses, capfd):
    crew = CrewHere(count, set(loses))
    same(made(model, tmp_path, crew), tmp_path, alone)
    assert crew.closed
    assert len({share for _, share in crew.begun}) == len(crew.begun) - sum(at > 1 for _, at in loses)
    assert capfd.readouterr().err.count("was lost (ended by SIGKILL)") == len(loses)


def test_variants_share_the_reading_of_the_original(model, alone):
    """Streams and sweeps are cut by windows, all variants at a time; other variants are one share each."""
    names = [name.partition("/")[2] for name in alone[1]]
    assert sum(name.startswith("KL of ") for name in names) == 2
    assert sum(name.startswith("made ") and "| edit" in name for name in names) == 9
    assert sum(" (limit" in name and ("| edit" in name or "| original" in name) for name in names) >= 40


def test_every_worker_lost_is_one_line_and_loses_nothing(model, alone, tmp_path):
    with pytest.raises(StudfinderError, match=r"the last of 2 workers of here was lost .* goes on where this stopped"):
        made(model, tmp_path, CrewHere(2, {(1, 9), (2, 12)}))
    kept = steps(tmp_path)
    assert 5 < len(kept) < len(alone[1])
    crew = CrewHere(1)
    same(made(model, tmp_path, crew), tmp_path, alone)
    assert len(crew.begun) < 20


def test_an_interrupted_run_goes_on_alone(model, alone, tmp_path):
    with pytest.raises(StudfinderError):
        made(model, tmp_path, CrewHere(1, {(1, 20)}))
    same(made(model, tmp_path), tmp_path, alone)


@pytest.mark.parametrize(
    ("worker", "facts", "said"),
    [
        (1, {"torch": "1.0"}, "computes with torch 1.0, this process with "),
        (2, {"cpu": "AVX512 avx512_bf16"}, "computes with cpu AVX512 avx512_bf16, this process with "),
        (2, {"device": "NVIDIA H200"}, "computes with device NVIDIA H200"),
    ],
)
def test_a_mixture_is_refused_unless_asked_for(model, alone, tmp_path, worker, facts, said):
    with pytest.raises(StudfinderError, match=said):
        made(model, tmp_path, CrewHere(2, facts={worker: facts}))
    result = made(model, tmp_path, CrewHere(2, facts={worker: facts}), mixed=True)
    same(result, tmp_path, alone)
    (named,) = facts.items()
    assert " ".join(named) in result.run.versions[f"worker {worker}"]
    assert "threads 1" in result.run.versions["worker 1"]


def test_what_another_kind_of_worker_began_is_not_gone_on_with(model, tmp_path):
    with pytest.raises(StudfinderError, match="was lost"):
        made(model, tmp_path, CrewHere(1, {(1, 9)}, {1: {"cpu": "AVX1024"}}), mixed=True)
    with pytest.raises(StudfinderError, match=r"a worker on .* with AVX1024"):
        made(model, tmp_path, CrewHere(1))


def test_what_is_passed_over_and_what_is_not(model, tmp_path):
    result = made(model, tmp_path, CrewHere(2), fault="missing")
    assert result.notes[0].endswith("missing was not measured. no data.")
    assert result.tables == made(model, tmp_path / "alone", fault="missing").tables
    with pytest.raises(RuntimeError, match="ValueError in a worker: a mistake of ours") as caught:
        made(model, tmp_path / "bug", CrewHere(2), fault="bug")
    assert "in scores" in caught.value.__notes__[0]


def test_other_weights_and_another_folder_are_refused(model, tmp_path, monkeypatch):
    class Elsewhere(CrewHere):
        def start(self, job):
            job.folder = Path("/nowhere")
            return super().start(job)

    with pytest.raises(StudfinderError, match="does not see the folder /nowhere"):
        made(model, tmp_path, Elsewhere(1))

    class Others(CrewHere):
        def start(self, job):
            job.models = dict.fromkeys(job.models, str(other))
            return super().start(job)

    other = tmp_path / "other"
    lm = provable("llama", planted=True)[0]
    lm.model.save_pretrained(other)
    lm.tokenizer.save_pretrained(other)
    with pytest.raises(StudfinderError, match="a worker finds other weights under the name"):
        made(model, tmp_path, Others(1))


@pytest.mark.parametrize("on", ["processes", "ray"])
def test_real_workers_one_of_which_is_killed(model, alone, tmp_path, on, capfd, monkeypatch):
    """As processes and on Ray, bit for bit."""
    if on == "ray":
        pytest.importorskip("ray", reason="the extra ray is not installed")
    monkeypatch.setenv("PYTHONPATH", PLACE)
    crew: Any = crew_of(f"{on}:2")
    killed: list[int] = []

    class Killing(type(crew)):  # type: ignore[misc]
        def ask(self, worker, request):
            if request is None and worker == 1 and not killed:
                killed.append(worker)
                if on == "ray":
                    self._ray.kill(self._actors[1])
                else:
                    os.kill(self._processes[1].pid, signal.SIGKILL)
            super().ask(worker, request)

    crew.__class__ = Killing
    before = children()
    result = made(model, tmp_path, crew)
    same(result, tmp_path, alone)
    assert killed
    assert "worker 1 was lost (" in capfd.readouterr().err
    assert {"worker 1", "worker 2"} <= result.run.versions.keys()
    assert children() == before


def children() -> set[str]:
    """Processes below this one, but for those that Python keeps for itself."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()[1:]]
    below, found = {str(os.getpid())}, set()
    for pid, parent, command in rows:
        if parent in below and "resource_tracker" not in command and not command.startswith("ps -eo"):
            below.add(pid)
            found.add(command)
    return found


def test_ctrl_c_ends_the_workers_too(model, tmp_path):
    code = (
        "import sys, spreading; from studfinder.experiments.registry import EXPERIMENTS; "
        "EXPERIMENTS['tests/spreading'] = 'spreading'; from studfinder.cli import main; main()"
    )
    words = ["experiment", "tests/spreading", "--model", str(model), "--on", "processes:2", "--out", "run"]
    words += ["--set", "variants=400"]
    running = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": PLACE, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    kept = tmp_path / "run.partial/steps.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and running.poll() is None and not (kept.exists() and kept.stat().st_size):
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to every process of the command
    said, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert errors.endswith("studfinder: interrupted; nothing that existed was lost\n")
    assert "Traceback" not in errors
    assert kept.stat().st_size
    assert said == ""
    with pytest.raises(ProcessLookupError):  # Python's own tracker of resources ends when it sees that it can
        for _ in range(100):
            os.killpg(running.pid, 0)
            time.sleep(0.1)


@pytest.mark.parametrize("on", ["", "processes:0", "processes:x", "threads:2", "ray://", "ray:-1", "dask"])
def test_what_on_does_not_understand(on):
    with pytest.raises(StudfinderError, match="expected processes:4, ray, ray:4 or ray://HOST:PORT"):
        crew_of(on)


def test_an_experiment_without_a_grid_is_refused_by_name(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for more in ([], ["--dry-run"]):
        assert run_cli(["experiment", "massive-values/map", "--on", "processes:2", *more]) == 2
        assert "massive-values/map has no grid that workers could share" in capfd.readouterr().err
    with pytest.raises(StudfinderError, match="kv-shift/theory has no grid"):
        experiment("kv-shift/theory", on="ray")
    assert run_cli(["experiment", "super-weight/ablation", "--on", "processes:3", "--dry-run"]) == 0
    assert ", shared by processes:3" in capfd.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_ray_is_asked_for_and_not_there(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run_cli(["experiment", "super-weight/ablation", "--on", "ray"]) == 2
    error = capfd.readouterr().err
    assert error == "studfinder: error: Ray is not installed; expected the extra ray. pip install 'studfinder[ray]'.\n"


def test_cores_are_shared(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert [ProcessCrew(count).threads for count in (1, 2, 3, 16)] == [8, 4, 2, 1]


def test_an_edited_model_and_the_original_are_measured_by_two(model, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("studfinder.verbs.measure.crew_of", lambda on, gpu: CrewHere(int(on)))
    monkeypatch.setattr("studfinder.verbs.measure.write_cards", lambda *_: None)
    edits = ["scale=0.5:model.layers.0.mlp.down_proj.weight[0, 0]"]
    options: dict[str, Any] = {"edits": edits, "limit": 2, "progress": lambda *_: None}
    names = ["perplexity", "repetition"]
    alone = measure(model, names, **options)
    card = measure(str(model), names, **options, on="2", out=tmp_path / "out")
    assert [_timeless(asdict(one)) for one in card.measured] == [_timeless(asdict(one)) for one in alone.measured]
    assert {"worker 1", "worker 2"} <= card.run.versions.keys()
    assert measure(str(model), names, **options, on="2").measured[0].score == alone.measured[0].score
    with pytest.raises(StudfinderError, match="--on of one model as it is"):
        measure(str(model), names, on="2")
    with pytest.raises(StudfinderError, match="--on with live models or edits"):
        measure(load(model), names, **options, on="2")
    assert run_cli(["measure", str(model), "--on", "2"]) == 2
    capfd.readouterr()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_says_whether_it_has_a_grid(name):
    module = experiment_named(name)
    source = Path(module.__file__).read_text("utf-8")
    assert module.EXPERIMENT.spread == bool(re.search(r"bench\.grid\(|\w\.scored\(|\b(swept|add_units)\(", source))

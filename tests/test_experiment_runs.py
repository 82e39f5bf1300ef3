"""Where an experiment's results go, what they depend on, and that nothing of another run is taken for theirs."""

from __future__ import annotations

import itertools
import json
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from proving import provable
from rerun import interrupted
from studfinder.experiments.run import ExperimentPlan, run_experiment
from studfinder.experiments.weights import scan_of
from studfinder.models import load
from studfinder.records import Table
from studfinder.runs import key_of, provenance
from studfinder.studies.experiment import Experiment, Outcome, StudyConfig

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def here(tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def lm():
    return provable("llama", planted=True)[0]


def plan(calls: list[str], *, scan: bool = False) -> ExperimentPlan:
    """An experiment of two steps on one model."""

    def run(bench, lm):
        if scan:
            scan_of(bench, lm, prove=False)
        values = [bench.once(name, lambda name=name: calls.append(name) or len(calls)) for name in ("a", "b")]
        return Outcome([Table(title="t", columns=("v",), rows=tuple((value,) for value in values))])

    entry = Experiment(name="a/b", paper="-", shows="ours", summary="-", needs="-", presets={"cpu": StudyConfig()})
    module: Any = SimpleNamespace(EXPERIMENT=entry, run=run)
    return ExperimentPlan(module, entry, ("m",), StudyConfig())


def test_a_scan_that_an_experiment_needs_goes_where_out_says(here, lm):
    _, folder = run_experiment(plan([], scan=True), out=here / "mine", loader=lambda _: lm)
    assert list(folder.glob("scans/*/scan-*/findings.json"))
    assert not (here / "runs").exists()
    assert any(name.startswith("scans/") for name in json.loads((folder / "run.json").read_text())["files"])


def test_a_finished_scan_is_shared(here, lm):
    run_experiment(plan([], scan=True), loader=lambda _: lm)
    assert len(list((here / "runs").glob("*/scan-*"))) == 1
    _, folder = run_experiment(plan([], scan=True), out=here / "mine", loader=lambda _: lm)
    assert not (folder / "scans").exists()


def test_other_weights_dtypes_and_configs_under_one_name_are_other_runs(here, lm):
    calls: list[str] = []
    models = [lm, load(provable("llama", planted=True)[0].model.to(torch.bfloat16), lm.tokenizer)]
    models.append(provable("llama", planted=False)[0])
    changed = provable("llama", planted=True)[0]
    changed.model.config.rms_norm_eps = 1e-3
    models.append(changed)
    folders = [run_experiment(plan(calls), loader=lambda _, one=one: one)[1] for one in models]
    assert len(set(folders)) == len(models)
    assert calls == ["a", "b"] * len(models)


def test_steps_and_results_of_other_versions_are_never_presented_as_of_these(here, lm, monkeypatch):
    calls: list[str] = []
    result, folder = run_experiment(plan(calls), out=here / "r", loader=lambda _: lm)
    own = provenance._package
    monkeypatch.setattr(provenance, "_package", lambda name: "99.0" if name == "torch" else own(name))
    shown, _ = run_experiment(plan(calls), out=here / "r", loader=lambda _: lm)
    assert shown == result  # finished: shown, with the versions it was made with
    assert shown.run.versions["torch"] != "99.0"
    assert len(calls) == 2
    interrupted(folder)
    with pytest.warns(UserWarning, match="made with other versions"):
        again, _ = run_experiment(plan(calls), out=here / "r", loader=lambda _: lm)
    assert len(calls) == 4  # no step of the old ones stands under the new versions
    assert again.run.versions["torch"] == "99.0"
    worked = json.loads((folder / "run.json").read_text())["made with"]
    assert [made["torch"] == "99.0" for made in worked] == [False, True]


def test_what_an_interrupted_run_took_is_counted(here, lm, monkeypatch):
    ticks = itertools.count(0, 100)
    monkeypatch.setattr("studfinder.runs.steps.time", SimpleNamespace(monotonic=lambda: next(ticks)))
    first, folder = run_experiment(plan([]), out=here / "r", loader=lambda _: lm)
    interrupted(folder)
    again, _ = run_experiment(plan([]), out=here / "r", loader=lambda _: lm)
    assert first.run.seconds < 100  # by the true clock
    assert again.run.seconds >= 200  # two steps, by the other


def test_a_new_version_of_what_is_scored_is_another_run(here, lm, monkeypatch):
    calls: list[str] = []
    _, first = run_experiment(plan(calls), loader=lambda _: lm)
    monkeypatch.setattr("studfinder.experiments.run.SCORING", 99)
    _, second = run_experiment(plan(calls), loader=lambda _: lm)
    assert first != second
    assert len(calls) == 4


def test_a_result_of_the_version_before_is_read_if_it_is_of_these_weights(here, lm):
    calls: list[str] = []
    result, folder = run_experiment(plan(calls), loader=lambda _: lm)
    settings = plan(calls).settled
    old = folder.with_name(f"a-b-{key_of(settings)}")
    folder.rename(old)
    (old / "run.json").write_text(json.dumps({"verb": "a-b", "key": key_of(settings), "settings": settings}))
    assert run_experiment(plan(calls), loader=lambda _: lm) == (result, old)
    other = provable("llama", planted=False)[0]
    assert run_experiment(plan(calls), loader=lambda _: other)[1] != old
    assert len(calls) == 4


def test_the_device_is_recorded_and_part_of_the_run(here, lm):
    result, folder = run_experiment(plan([]), loader=lambda _: lm)
    assert result.run.device == "cpu"
    assert json.loads((folder / "run.json").read_text())["identity"]["devices"] == ["cpu"]
    assert os.listdir(folder.parent) == [folder.name]

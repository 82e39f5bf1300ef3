"""A set of experiments in the order of a file: what is run, what is read, what refuses, and what is said."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from proving import provable
from studfinder.cli.app import run_cli
from studfinder.errors import StudfinderError
from studfinder.experiments import EXPERIMENTS, experiment_named, listed_runs, run_listed
from studfinder.experiments.listed import CLAIMS
from studfinder.experiments.weights import scan_of
from studfinder.records import Claim, Interval, Table
from studfinder.records.config import option
from studfinder.studies import judged
from studfinder.studies.experiment import Experiment, Outcome, StudyConfig

pytestmark = pytest.mark.usefixtures("undrawn")
CLAIM = Claim(key="toy/more", says="It is more.", decides="how much more")


@dataclass(frozen=True, kw_only=True)
class ToyConfig(StudyConfig):
    limit: int = option(5, least=1)
    texts: tuple[str, ...] = option(("a", "b"))


@pytest.fixture
def toys(tmp_path, monkeypatch, cache):
    """Four experiments without real work, the model "live" for all names, and the list of what they did."""
    monkeypatch.chdir(tmp_path)
    done: list[str] = []

    def measured(bench, lm=None):
        bench.once("step", lambda: done.append(f"measured {bench.config.limit}"))
        shown = Table(title="t", columns=("limit",), rows=((bench.config.limit,),))
        return Outcome(
            [shown], claims=[judged(CLAIM, Interval(value=2.0, low=1.0, high=3.0, n=9, level=0.95, method="-"))]
        )

    def refuses(bench, lm):
        bench.once("step", lambda: done.append("refuses"))
        raise StudfinderError("it lacks\nwhat is asked for", do="Take another")

    def broken(bench, lm):
        raise ZeroDivisionError("by nothing")

    def scans(bench, lm):
        _, folder = scan_of(bench, lm, prove=False)
        done.append(f"scan in {folder.parts[0]}")
        return Outcome([Table(title="t", columns=("v",), rows=((1,),))])

    for name, run, trains in (
        ("measured", measured, False),
        ("refuses", refuses, False),
        ("broken", broken, False),
        ("scans", scans, False),
        ("trained", measured, True),
    ):
        entry = Experiment(
            name=f"toy/{name}",
            paper="-",
            shows="ours",
            summary="-",
            needs="a while",
            presets={"cpu": ToyConfig(), "paper": ToyConfig(limit=50)},
            trains=trains,
            claims=(CLAIM,),
        )
        monkeypatch.setitem(sys.modules, f"toy_{name}", SimpleNamespace(EXPERIMENT=entry, run=run))
        monkeypatch.setitem(EXPERIMENTS, entry.name, f"toy_{name}")
    lm = provable("llama", planted=True)[0]

    def loaded(name, config=None):
        if name == "missing":
            raise StudfinderError("missing is not there")
        return lm

    monkeypatch.setattr("studfinder.verbs.load.load_as", loaded)
    return SimpleNamespace(done=done, loaded=loaded)


def written(text: str) -> Path:
    path = Path("set.toml")
    path.write_text(text, encoding="utf-8")
    return path


def run(*names: str, models: str = '["m"]') -> str:
    plain = (name if name == "trained" else f'{name}"\nmodels = {models}\n#' for name in names)
    return "".join(f'[[run]]\nexperiment = "toy/{name}"\n' for name in plain)


# --- the file -----------------------------------------------------------------------------------------------------


def test_the_papers_claims_are_all_in_the_file_of_the_package():
    names = [one.plan.entry.name for one in listed_runs()]
    assert len(set(names)) == len(names)
    assert {name for name in EXPERIMENTS if experiment_named(name).EXPERIMENT.claims} <= set(names)
    for one in listed_runs(models=["a", "b"]):
        assert one.plan.models in {("a",), ("b",), ()}
        assert (one.plan.models == ()) == one.plan.entry.trains


def test_a_run_for_each_model_in_the_order_of_the_file(toys):
    file = written(
        '[[run]]\nexperiment = "toy/measured"\nmodels = ["one", "my model"]\nminutes = 2\n'
        'settings = {limit = 7, texts = ["x", "y"]}\n'
        '[[run]]\nexperiment = "toy/trained"\npreset = "paper"\n[[run]]\nexperiment = "toy/scans"\n'
    )
    runs = listed_runs(file)
    assert [(one.plan.entry.name, one.plan.models, one.minutes) for one in runs] == [
        ("toy/measured", ("one",), 2),
        ("toy/measured", ("my model",), 2),
        ("toy/trained", (), None),
        ("toy/scans", ("smollm2",), None),
    ]
    assert [one.plan.config.limit for one in runs] == [7, 7, 50, 5]
    assert [one.words for one in runs] == [
        "toy/measured --model one --set limit=7 --set texts=x,y",
        "toy/measured --model 'my model' --set limit=7 --set texts=x,y",
        "toy/trained --preset paper",
        "toy/scans --model smollm2",
    ]
    assert [one.plan.models for one in listed_runs(file, ["a", "b"])] == [("a",), ("b",), (), ("a",), ("b",)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "lists no run"),
        ("run = 3", "lists no run"),
        ("run = [3]", "lists no run"),
        ("[[runs]]\nexperiment = 'toy/measured'", "has 'runs'"),
        ("[[run]]\nexperiment =", "is not TOML (Invalid value (at"),
        ("[[run]]\nmodels = ['a']", "run 1 (None): [[run]]: missing 1 required"),
        ("[[run]]\nexperiment = 5", "run 1 (5): experiment=5; expected a text"),
        ("[[run]]\nexperiment = 'toy/meassured'", "there is no experiment 'toy/meassured'; expected toy/measured"),
        ("[[run]]\nexperiment = 'toy/measured'\nmodel = 'a'", "no keyword 'model'; expected models"),
        ("[[run]]\nexperiment = 'toy/measured'\nmodels = [1]", "models=1; expected a text"),
        ("[[run]]\nexperiment = 'toy/measured'\npreset = 'gpu'", "no preset 'gpu'"),
        ("[[run]]\nexperiment = 'toy/measured'\nminutes = -1", "minutes=-1; expected above 0"),
        ("[[run]]\nexperiment = 'toy/measured'\nminutes = 'long'", "minutes=long; expected a number"),
        ("[[run]]\nexperiment = 'toy/measured'\nsettings = 'limit=5'", "settings= is 'limit=5'"),
        ("[[run]]\nexperiment = 'toy/measured'\nsettings = {limt = 5}", "no setting 'limt'; expected limit"),
        ("[[run]]\nexperiment = 'toy/measured'\nsettings = {limit = 0}", "limit=0; expected 1 or more"),
        ("[[run]]\nexperiment = 'toy/measured'\nsettings = {limit = 1979-05-27}", "limit=1979-05-27; expected"),
        ("[[run]]\nexperiment = 'toy/trained'\nmodels = ['a']", "trains models of its own"),
        (run("measured") + "[[run]]\nexperiment = 'toy/none'", "run 2 (toy/none): there is no experiment"),
    ],
)
def test_a_wrong_file_is_one_line_before_anything_runs(toys, mistake, text, told):
    said = mistake("experiment", "--all", "--from", written(text))
    assert told in said
    assert "set.toml" in said
    assert toys.done == []
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--from", "nothing.toml"], "nothing.toml cannot be read"),
        (["toy/measured"], "toy/measured beside --all"),
        (["--limit", "3"], "--limit beside --all"),
        (["--seed", "0"], "--seed beside --all"),
        (["--set", "limit=3"], "limit=3 beside --all"),
        (["--preset", "paper"], "--preset beside --all"),
        (["--lam=3"], "--lam=3 beside --all"),
        (["--out", "set.toml"], "--out set.toml is a file"),
    ],
)
def test_what_one_experiment_takes_is_not_for_all(toys, mistake, words, told):
    written(run("measured"))
    assert told in mistake("experiment", "--all", *words)


# --- the runs -----------------------------------------------------------------------------------------------------


def test_what_refuses_leaves_the_others_and_what_is_finished_is_read(toys):
    runs = listed_runs(written(run("measured", "refuses", "broken", "trained")))
    ended = list(run_listed(runs, root=Path("r"), loader=toys.loaded))
    assert [one.refused for one in ended] == [
        "",
        "it lacks what is asked for. Take another.",
        "internal error: ZeroDivisionError: by nothing",
        "",
    ]
    assert [one.result is None for one in ended] == [bool(one.refused) for one in ended]
    assert toys.done == ["measured 5", "refuses", "measured 5"]
    assert [one.folder.parent for one in ended if one.folder] == [Path("r/m"), Path("r/trained")]
    assert not any(one.read for one in ended)
    again = list(run_listed(runs, root=Path("r"), loader=toys.loaded))
    assert [one.read for one in again] == [True, False, False, True]
    assert [one.result for one in again] == [one.result for one in ended]
    assert toys.done == ["measured 5", "refuses", "measured 5"]  # the step of the one that refused is kept too
    list(run_listed(runs[:1], root=Path("r"), loader=toys.loaded, overwrite=True))
    assert toys.done[3:] == ["measured 5"]


def test_ctrl_c_leaves_what_is_finished_and_what_was_done_of_the_rest(toys, monkeypatch):
    runs = listed_runs(written(run("measured", "refuses", "trained")))

    def interrupted(bench, lm):
        bench.once("step", lambda: toys.done.append("begun"))
        raise KeyboardInterrupt

    whole = sys.modules["toy_refuses"].run
    monkeypatch.setattr(sys.modules["toy_refuses"], "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(run_listed(runs, loader=toys.loaded))
    assert len(list(Path("runs").glob("*/*/result.json"))) == 1
    monkeypatch.setattr(sys.modules["toy_refuses"], "run", whole)
    ended = list(run_listed(runs, loader=toys.loaded))
    assert [one.read for one in ended] == [True, False, False]
    assert toys.done == ["measured 5", "begun", "measured 5"]


def test_one_scan_serves_all_of_a_folder(toys):
    file = written(run("scans") + run("scans").replace("#", "settings = {limit = 2}\n#"))
    list(run_listed(listed_runs(file), root=Path("r"), loader=toys.loaded))
    assert toys.done == ["scan in r", "scan in r"]
    assert len(list(Path("r").glob("*/scan-*"))) == 1
    assert not Path("runs").exists()


def test_the_record_says_what_makes_it_alone(toys):
    runs = listed_runs(written(run("measured", "trained")))
    ended = list(run_listed(runs, loader=toys.loaded, options="--dtype float32"))
    assert [one.result.run.command for one in ended] == [
        "studfinder experiment toy/measured --model m --dtype float32",
        "studfinder experiment toy/trained",
    ]


# --- the command --------------------------------------------------------------------------------------------------


def test_the_command(toys, capsys):
    file = written(run("measured", "trained") + "minutes = 3\n")
    words = ["experiment", "--all", "--from", str(file), "--out", "r"]
    assert run_cli([*words, "--dry-run"]) == 0
    plain = capsys.readouterr().out.splitlines()
    assert plain == [
        "would run toy/measured on m with limit=5, texts=a,b, seed=0; needs a while",
        "would run toy/trained on models of its own with limit=5, texts=a,b, seed=0; about 3 minutes",
        "2 runs, 3 minutes on two cores as stated (1 do not state theirs); results go to r/<model>/",
    ]
    assert not Path("r").exists()
    assert run_cli([*words, "--dtype", "float32"]) == 0
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert lines[0] == plain[-1]
    assert lines[1].startswith("[1/2] toy/measured on m: ")
    assert lines[2].startswith("[2/2] toy/trained on models of its own: ")
    assert "It is more." in said.out
    assert "Claims: 2 held" in said.out
    assert "r/trained/toy-trained-" in said.out
    assert run_cli([*words, "--dtype", "float32", "--json"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert [(one["experiment"], one["models"], one["read"]) for one in json.loads(said.out)] == [
        ("toy/measured", ["m"], True),
        ("toy/trained", [], True),
    ]


def test_one_that_refuses_is_named_and_the_exit_code_says_so(toys, capsys):
    written(run("refuses", "measured", models='["missing"]'))
    words = ["experiment", "--from", "set.toml"]
    assert run_cli(words) == 1
    said = capsys.readouterr()
    assert said.err.count("refused: missing is not there.") == 2
    assert run_cli([*words, "--model", "m"]) == 1
    said = capsys.readouterr()
    assert "[1/2] toy/refuses on m: refused: it lacks what is asked for. Take another." in said.err
    assert "[2/2] toy/measured on m: " in said.err
    assert "refused: it lacks" in said.out
    assert toys.done == ["refuses", "measured 5"]


def test_the_file_of_the_package_is_the_default(toys, capsys):
    assert run_cli(["experiment", "--all", "--model", "m", "--dry-run"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(listed_runs(CLAIMS)) + 1

"""Whatever kills a verb, and whenever: its result is the old one or the new one, and the same command ends like one
that was never killed.

Each try forks a warm process, which ends without a word just before one of its file operations, drawn at random: first
the kind of operation, then which of them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from proving import provable
from studfinder.experiments.run import ExperimentPlan, run_experiment
from studfinder.records import Table
from studfinder.runs import kind_of
from studfinder.studies.experiment import Experiment, Outcome, StudyConfig
from studfinder.verbs.measure import measure
from studfinder.verbs.quantize import quantize
from studfinder.verbs.report import report
from studfinder.verbs.scan import scan
from studfinder.verbs.train import train

pytestmark = pytest.mark.usefixtures("undrawn")
OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "shutil.rmtree"}
CLOCKS = {"seconds", "started", "made", "versions", "command", "key", "resumed"}


@pytest.fixture(scope="module")
def verbs(tmp_path_factory) -> dict[str, Callable[[Path, bool], Any]]:
    """Each verb on something small, as a call that takes where to and whether to overwrite."""
    torch.set_num_threads(1)
    lm = provable("llama", planted=True)[0]
    folder = tmp_path_factory.mktemp("models") / "m"
    lm.model.to(torch.bfloat16).save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    lm = provable("llama", planted=True)[0]
    task = "recall:vocabulary=32,length=16,pairs=2"
    sizes = {"layers": 1, "hidden": 16, "heads": 2, "batch": 4, "test": 4, "steps": 4}
    course = {"task": task, **sizes, "look_every": 2, "keep_every": 2, "quiet": True, "tensorboard": False}
    two = ["perplexity", "repetition"]
    return {
        "scan": lambda out, overwrite: scan(lm, prove=False, out=out, overwrite=overwrite),
        "measure": lambda out, overwrite: measure(lm, two, limit=2, out=out, overwrite=overwrite),
        "experiment": lambda out, overwrite: run_experiment(_plan(), out=out, overwrite=overwrite),
        "train": lambda out, overwrite: train(**course, out=out, overwrite=overwrite),
        "quantize": lambda out, overwrite: quantize(folder, out=out, overwrite=overwrite, verify=False),
        "quantize in memory": lambda out, overwrite: quantize(lm, out=out, overwrite=overwrite, verify=False),
    }


def _plan() -> ExperimentPlan:
    """An experiment of three steps that leaves a file of its own."""

    def run(bench):
        values = [bench.once(f"step {number}", lambda number=number: number**2) for number in range(3)]
        (bench.folder / "kept.bin").write_bytes(bytes(values))
        return Outcome([Table(title="t", columns=("a",), rows=tuple((value,) for value in values))])

    entry = Experiment(
        name="a/b", paper="-", shows="ours", summary="-", needs="-", presets={"cpu": StudyConfig()}, trains=True
    )
    module: Any = SimpleNamespace(EXPERIMENT=entry, run=run)
    return ExperimentPlan(module, entry, (), StudyConfig())


def forked(call: Callable, place: Path, *more: Any, kill: tuple[str, int] | None = None) -> tuple[int, Counter]:
    """Call with a place in a forked child; its exit code, and how many file operations of each kind it made below the
    folder around the place.

    Args:
        kill: end the child before this operation: its kind, and which of that kind.
    """
    root = place.parent
    tally = root.parent / f"{root.name}.tally"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            seen: Counter = Counter()

            def hook(event: str, arguments: tuple) -> None:
                if event in OPERATIONS and arguments and str(arguments[0]).startswith(str(root)):
                    if kill == (event, seen[event]):
                        os._exit(99)
                    seen[event] += 1

            sys.addaudithook(hook)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call(place, *more)
            done = dict(seen)  # writing the tally is not the verb's
            tally.write_text(json.dumps(done))
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, Counter(json.loads(tally.read_text())) if code == 0 else Counter()


def result_of(folder: Path) -> Any:
    """What a run found, without what the clock says; None if there is nothing."""
    if not folder.exists():
        return None
    _, file = kind_of(folder)
    weights = {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")}
    return _without_clocks(json.loads(file.read_text())), weights


def _without_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_clocks(one) for name, one in value.items() if name not in CLOCKS}
    return [_without_clocks(one) for one in value] if isinstance(value, list) else value


def tries(verbs: dict[str, Callable], root: Path, count: int, chance: random.Random) -> Counter:
    """Kill each verb in turn, with and without something to overwrite; what was there after each."""
    counted: dict[tuple[str, bool], Counter] = {}
    whole: dict[str, Any] = {}
    seen: Counter = Counter()
    for number in range(count):
        verb = list(verbs)[number % len(verbs)]
        overwrite = bool(number // len(verbs) % 2)
        place = root / f"{number}" / "out"
        place.parent.mkdir(parents=True)
        if verb not in whole:
            (root / verb).mkdir()
            assert forked(verbs[verb], root / verb / "out", False)[0] == 0
            whole[verb] = result_of(root / verb / "out")
        call = verbs[verb]
        if overwrite:
            assert forked(call, place, False)[0] == 0
        if (verb, overwrite) not in counted:
            twin = root / f"{number}-twin" / "out"
            twin.parent.mkdir()
            if overwrite:
                forked(call, twin, False)
            code, counted[verb, overwrite] = forked(call, twin, overwrite)
            assert code == 0
        kinds = counted[verb, overwrite]
        kind = chance.choice(sorted(kinds))
        kill = (kind, chance.randrange(kinds[kind]))
        code, _ = forked(call, place, overwrite, kill=kill)
        assert code in (99, 0), (verb, overwrite, kill)
        after = result_of(place)
        assert after in ((whole[verb],) if overwrite else (None, whole[verb])), (verb, overwrite, kill)
        seen[verb, "nothing" if after is None else "a result"] += 1
        assert forked(call, place, overwrite)[0] == 0, (verb, overwrite, kill)
        assert result_of(place) == whole[verb], (verb, overwrite, kill)
        left = {child.name for child in place.parent.iterdir()}
        assert left - {".out.lock"} == {"out"}, (verb, overwrite, kill, left)  # a dead owner's lock is in nobody's way
    return seen


@pytest.mark.real
@pytest.mark.timeout(600)
def test_twenty_four_kills(verbs, tmp_path):
    """Law 12: a killed run ends with the same numbers as one that was not."""
    seen = tries(verbs, tmp_path / "t", 24, random.Random(0))
    assert {verb for verb, _ in seen} == set(verbs)
    assert sum(count for (_, what), count in seen.items() if what == "nothing") > 5


@pytest.mark.deep
@pytest.mark.timeout(3000)
def test_three_hundred_kills(verbs, tmp_path):
    tries(verbs, tmp_path / "t", 300, random.Random(time.time_ns()))


@pytest.mark.real
def test_drawing_again_is_killed_at_every_operation(verbs, tmp_path):
    """The record and the arrays of a scan are never touched by it, and it can be done again."""
    place = tmp_path / "t" / "out"
    place.parent.mkdir()
    assert forked(verbs["scan"], place, False)[0] == 0
    before = {name: (place / name).read_bytes() for name in ("findings.json", "profile.safetensors")}
    _, counted = forked(report, place)
    for kind, count in counted.items():
        for number in range(0, count, max(1, count // 8)):
            forked(report, place, kill=(kind, number))
            assert {name: (place / name).read_bytes() for name in before} == before
    assert forked(report, place)[0] == 0
    assert forked(verbs["scan"], place, True)[0] == 0  # nothing is in the way


def _scan(out: Path) -> None:
    lm, _ = provable("llama", planted=True)
    scan(lm, out=out, overwrite=out.exists())


@pytest.mark.deep
@pytest.mark.timeout(1200)
def test_fifty_kills_by_the_clock(tmp_path):
    """Between operations too, in writes of other libraries, with the proof and the true figures."""
    context = multiprocessing.get_context("fork")
    _scan(tmp_path / "whole")
    whole = result_of(tmp_path / "whole")
    started = time.monotonic()
    process = context.Process(target=_scan, args=(tmp_path / "timing",))
    process.start()
    process.join()
    took = time.monotonic() - started
    chance = random.Random(0)
    for number in range(50):
        out = tmp_path / f"run{number % 5}"  # folders are met again: what a kill left must be usable
        before = result_of(out)
        process = context.Process(target=_scan, args=(out,))
        process.start()
        time.sleep(chance.uniform(0, 1.2 * took))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        assert result_of(out) in (before, whole)
    for number in range(5):  # and every one of them can be finished
        _scan(tmp_path / f"run{number}")
        assert result_of(tmp_path / f"run{number}") == whole

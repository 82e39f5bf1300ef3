"""A whole set of experiments in the order of a file, one after the other, each in a run folder of its own.

    [[run]]
    experiment = "super-weight/ablation"
    models = ["smollm2", "gemma3-270m"]     # a run each; the default is smollm2
    settings = {limit = 60}                 # what differs from the preset
    minutes = 6                             # of one model, as measured on two cores

`claims.toml` beside this file is the default: the experiments that judge the papers' claims.
"""

from __future__ import annotations

import shlex
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from studfinder.errors import StudfinderError, in_a_line, known
from studfinder.experiments.run import ExperimentPlan, plan_experiment, run_experiment
from studfinder.models import LM
from studfinder.records import Result
from studfinder.records.config import Config, made, option
from studfinder.records.outside import read_text
from studfinder.runs import Progress
from studfinder.verbs.load import load

CLAIMS = Path(__file__).with_name("claims.toml")


@dataclass(frozen=True, kw_only=True)
class _Entry(Config):
    """A [[run]] of the file."""

    experiment: str = option()
    models: Sequence[str] = option(())
    preset: str = option("cpu")
    settings: Mapping[str, Any] | None = option(None, line=False)
    minutes: float | None = option(None, above=0)


@dataclass(frozen=True)
class ListedRun:
    """A run that a file lists.

    Attributes:
        plan: of one model, or of an experiment that trains its own.
        minutes: how long the file says that it takes on two cores; None if it does not say.
        words: what makes it alone, after "studfinder experiment".
    """

    plan: ExperimentPlan
    minutes: float | None
    words: str

    def __str__(self) -> str:
        return f"{self.plan.entry.name} on {', '.join(self.plan.models) or 'models of its own'}"


@dataclass(frozen=True)
class EndedRun:
    """What became of it.

    Attributes:
        result, folder: None where it refused.
        refused: why, in one line.
        read: whether the result was there already.
        seconds: wall time of this call, loading included.
    """

    run: ListedRun
    result: Result | None
    folder: Path | None
    refused: str
    read: bool
    seconds: float


def listed_runs(file: Path = CLAIMS, models: Sequence[str] | None = None) -> list[ListedRun]:
    """The runs of a file, one for each model of an entry, so that a model that is refused leaves the others theirs.

    Args:
        models: instead of the file's, for all experiments that take models.

    Raises:
        StudfinderError: it is no such file, or names an experiment, a key, a preset or a setting that there is not.
    """
    try:
        tables = tomllib.loads(read_text(file, name="list of runs"))
    except tomllib.TOMLDecodeError as error:
        raise StudfinderError(f"list of runs {file} is not TOML ({in_a_line(error)})") from None
    entries = tables.pop("run", None)
    if tables or not entries or not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        odd = f"has {', '.join(map(repr, tables))}" if tables else "lists no run"
        raise StudfinderError(f"list of runs {file} {odd}", expected='[[run]] with experiment = "..." and nothing else')
    runs = []
    for number, fields in enumerate(entries, 1):
        try:
            runs += _planned(made(_Entry, "[[run]]", (), fields), models)
        except StudfinderError as error:
            place = f"{file}, run {number} ({str(fields.get('experiment'))[:40]}): "
            raise StudfinderError(place + error.what, expected=error.expected, do=error.do) from None
    return runs


def _planned(entry: _Entry, models: Sequence[str] | None) -> list[ListedRun]:
    settings = entry.settings or {}
    plan = plan_experiment(entry.experiment, entry.models or None, preset=entry.preset, settings=settings)
    said = "" if entry.preset == "cpu" else f" --preset {entry.preset}"
    said += "".join(" " + shlex.join(["--set", f"{name}={plan.settings[name]}"]) for name in settings)
    if plan.entry.trains:
        return [ListedRun(plan, entry.minutes, plan.entry.name + said)]
    return [
        ListedRun(replace(plan, models=(one,)), entry.minutes, f"{plan.entry.name} --model {shlex.quote(one)}{said}")
        for one in models or plan.models
    ]


def run_listed(
    runs: Sequence[ListedRun],
    *,
    root: Path = Path("runs"),
    overwrite: bool = False,
    progress: Progress | None = None,
    options: str = "",
    loader: Callable[[str], LM] = load,
) -> Iterator[EndedRun]:
    """Carry the runs out, each in root/<model>/<experiment>-<key>, and give each back as it ends.

    A run that is finished is read, one that was interrupted goes on, and one that refuses leaves the others.

    Args:
        options: what the loader does beyond the default, as options of the command line, for the records.
    """
    for run in runs:
        began, clock = time.time(), time.monotonic()
        result = folder = None
        refused = ""
        try:
            result, folder = run_experiment(
                run.plan,
                root=root,
                overwrite=overwrite,
                progress=progress,
                command=f"studfinder experiment {run.words} {options if run.plan.models else ''}".rstrip(),
                loader=loader,
            )
        except Exception as error:
            said = known(error)
            refused = str(said) if said else f"internal error: {type(error).__name__}: {in_a_line(error)}"
        read = folder is not None and (folder / "result.json").stat().st_mtime < began
        yield EndedRun(run, result, folder, " ".join(refused.split()), read, time.monotonic() - clock)

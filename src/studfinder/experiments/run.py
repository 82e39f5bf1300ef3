"""Run an experiment: settings, run folder, steps that are not done twice, and what is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from studfinder.errors import StudfinderError
from studfinder.experiments.job import ExperimentJob
from studfinder.experiments.registry import experiment_named
from studfinder.experiments.sheets import draw_into
from studfinder.models import LM, cached_content_hash, config_hash
from studfinder.records import Result, RunCard, to_json
from studfinder.records.config import identity, replaced
from studfinder.records.presented import Presented
from studfinder.records.public import checked
from studfinder.runs import SCORING, Progress, Run, Work, first_process, now, read, run_of, versions, write_text
from studfinder.runs.progress import in_notebook
from studfinder.studies.experiment import Bench, Experiment, Outcome, StudyConfig
from studfinder.studies.workers import Crew, Workers, crew_of, workers_of
from studfinder.verbs.load import load

_RESULT = "result.json"


@dataclass(frozen=True)
class ExperimentPlan(Presented):
    """Everything that determines an experiment's result, worked out before it starts."""

    module: ModuleType
    entry: Experiment
    models: tuple[str, ...]
    config: StudyConfig

    @property
    def settings(self) -> dict[str, Any]:
        """The config in plain values, as the command line has them."""
        every = identity(self.config).items()
        return {name: ",".join(map(str, value)) if isinstance(value, tuple) else value for name, value in every}

    @property
    def shown(self) -> str:
        """The same in one line."""
        return ", ".join(f"{name}={value}" for name, value in self.settings.items())

    def crew(self, on: str, *, gpu: bool = False) -> Crew:
        """The workers that are to share it. Raises as `crew_of`, and StudfinderError if they cannot."""
        if not self.entry.spread:
            raise StudfinderError(f"{self.entry.name} has no grid that workers could share", do="Leave --on out")
        return crew_of(on, gpu=gpu)

    @property
    def settled(self) -> dict[str, Any]:
        """What is known of the run before a model is loaded."""
        return {"experiment": self.entry.name, "models": list(self.models), **self.settings}


def plan_experiment(
    name: str,
    models: Sequence[str] | None = None,
    *,
    preset: str = "cpu",
    settings: Mapping[str, Any] | None = None,
) -> ExperimentPlan:
    """Look the experiment up and fix its settings.

    Args:
        models: names or paths; the default is smollm2, and none for an experiment that trains its own.
        settings: what differs from the preset, by the names that the preset has; None values are left as they are.

    Raises:
        StudfinderError: no such experiment or preset, a setting that it does not have, or one that is out of range.
    """
    module = experiment_named(name)
    entry: Experiment = module.EXPERIMENT
    chosen = replaced(entry.settings(preset), settings or {}, name)
    if entry.trains and models:
        raise StudfinderError(f"{name} trains models of its own", do="Leave --model out")
    if models is None:
        models = () if entry.trains else ("smollm2",)
    if not models and not entry.trains:
        raise StudfinderError("there are no models", expected="at least one --model")
    return ExperimentPlan(module, entry, tuple(models), chosen)


def run_experiment(
    plan: ExperimentPlan,
    *,
    out: Path | None = None,
    root: Path = Path("runs"),
    overwrite: bool = False,
    progress: Progress | None = None,
    command: str = "",
    loader: Callable[[str], LM] = load,
    crew: Crew | None = None,
    mixed: bool = False,
) -> tuple[Result, Path]:
    """Carry out a planned experiment; returns its result and its run folder: `out`, or root/<model>/<name>-<key>.

    Steps that an interrupted run finished are not done again; a finished run is read.

    Args:
        loader: loads a model by name; with a crew it must be one that can be pickled.
        crew: workers that share the grid's work; see `ExperimentPlan.crew`.
        mixed: they may differ in versions and processors.

    Raises:
        StudfinderError: `out` holds another run, a model cannot be loaded, or what the experiment itself refuses.
    """
    # Before a folder is made: a model that is not there leaves nothing behind.
    first = loader(plan.models[0]) if plan.models else None
    run, sources = _run(plan, first, out, root, loader)
    found = None if overwrite else run.finished()
    if found is not None:
        result = read(found, Result)
        if found == run.path or _same_weights(result, run):
            return result, found
    with run.work(overwrite=overwrite, sources=sources) as work:
        bench = Bench(
            plan.models,
            plan.config,
            work,
            progress,
            loader,
            first,
            work.path / "scans" if run.given else root,
        )
        del first  # the bench alone holds it, and lets it go before it loads another
        with ExitStack() as stack:
            if crew is not None:
                job = ExperimentJob.of(plan.module.__name__, bench, run.identity["hashes"])
                workers = Workers(crew, job, work.steps, mixed=mixed, progress=bench.progress)
                work.steps.executor = stack.enter_context(workers)
            result = _carried_out(plan, run, bench, command)
        if first_process():
            _written(plan, work, result)
    return result, run.path


@checked
def experiment(
    name: str,
    models: str | Sequence[str] | None = None,
    *,
    preset: str = "cpu",
    out: Path | str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    on: str | None = None,
    mixed: bool = False,
    **settings: Any,
) -> Result:
    """Make one table or figure of a paper on your own model; interrupted, the same call goes on where it stopped.

    Args:
        name: which, e.g. "super-weight/ablation"; `studfinder ls experiments` lists them.
        models: names or paths, one or several; see `plan_experiment`.
        preset: "cpu" or "paper".
        out: the run folder; the default is runs/<model>/<name>-<key>.
        overwrite: make it anew, and replace what is there.
        progress: told (what, done, total); the default is a bar in notebooks.
        on: workers that share its grid, e.g. "processes:4"; see `crew_of`. They start Python anew, so a script that
            asks for them begins with `if __name__ == "__main__":`.
        mixed: they may differ in versions and processors.
        settings: the experiment's own, e.g. limit=50, seed=1.

    Raises:
        StudfinderError: see `plan_experiment` and `run_experiment`.
    """
    models = (models,) if isinstance(models, str) else models
    plan = plan_experiment(name, models, preset=preset, settings=settings)
    place = None if out is None else Path(out)
    crew = None if on is None else plan.crew(on)
    tell = progress or in_notebook
    return run_experiment(plan, out=place, overwrite=overwrite, progress=tell, crew=crew, mixed=mixed)[0]


def _run(
    plan: ExperimentPlan, first: LM | None, out: Path | None, root: Path, loader: Callable[[str], LM]
) -> tuple[Run, list[Path | None]]:
    """The run's identity and place, and the folders of its models. Models beyond the first are loaded for their hash,
    and let go."""
    identity: dict[str, Any] = {**plan.settled, "scoring": SCORING}
    sources: list[Path | None] = []
    if first is None:
        identity["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    else:
        models = chain((first,), map(loader, plan.models[1:]))
        identity["hashes"], identity["configs"], identity["dtypes"], identity["devices"] = [], [], [], []
        for lm in models:  # one at a time: they are loaded as they are asked for
            identity["hashes"].append(cached_content_hash(lm))
            identity["configs"].append(config_hash(lm))
            identity["dtypes"].append(str(lm.dtype))
            identity["devices"].append(lm.device.type)
            sources.append(lm.source.folder)
    place = "-".join(Path(model).name for model in plan.models) or "trained"
    verb = plan.entry.name.replace("/", "-")
    return run_of(verb, place, identity, result=_RESULT, out=out, root=root, before=plan.settled), sources


def _same_weights(result: Result, run: Run) -> bool:
    """Whether a result of the earlier version, whose settings did not say it, is of these weights."""
    return [card.content_hash for card in result.models] == run.identity.get("hashes", [])


def _carried_out(plan: ExperimentPlan, run: Run, bench: Bench, command: str) -> Result:
    started, clock = now(), time.monotonic()
    outcome = _outcome(plan.module, bench)
    devices = run.identity.get("devices") or [run.identity["device"]]
    return Result(
        name=plan.entry.name,
        paper=plan.entry.paper,
        shows=plan.entry.shows,
        models=tuple(bench.cards),
        run=RunCard(
            verb="experiment",
            key=run.key,
            settings=plan.settings,
            command=command or f"studfinder experiment {plan.entry.name}",
            started=started,
            seconds=bench.work.steps.earlier + time.monotonic() - clock,
            device=", ".join(dict.fromkeys(devices)),
            seed=plan.config.seed,
            versions={**versions(), **workers_of(bench.work.steps)},
        ),
        tables=tuple(outcome.tables),
        notes=(*outcome.notes, *outcome.remarks),
        charts=tuple(outcome.charts),
        claims=tuple(outcome.claims),
        data=outcome.data,
    )


def _outcome(module: ModuleType, bench: Bench) -> Outcome:
    """Of every model in turn, or of all that are trained."""
    if not bench.models:
        return module.run(bench)
    whole = Outcome()
    for name in bench.models:
        with bench.model(name) as lm:
            whole.add(name, module.run(bench, lm))
    if hasattr(module, "across"):
        part = module.across(whole.data)
        whole.tables[:0], whole.notes[:0] = part.tables, part.notes
        whole.charts += part.charts
        whole.claims += part.claims
    return whole


def _written(plan: ExperimentPlan, work: Work, result: Result) -> None:
    write_text(work.path / _RESULT, to_json(result, indent=1))  # before it is drawn, which may fail
    draw_into(work.path, result, plan.module)

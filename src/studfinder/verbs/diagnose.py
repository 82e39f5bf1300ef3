"""diagnose: what a finished checkpoint lost against what it was made from, where, why, and what mends it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studfinder.diagnosis.outputs import engine_outputs
from studfinder.models import LM, cached_content_hash, config_hash, content_hash
from studfinder.models.memory import as_bytes
from studfinder.models.original import original_named
from studfinder.models.places import source_named
from studfinder.records import Diagnosis, Interval, to_json
from studfinder.records.config import identity, takes
from studfinder.records.presented import Presented
from studfinder.report.diagnosis import diagnosis_sheet
from studfinder.runs import SCORING, Run, key_of, read, run_of, write_text
from studfinder.verbs.configs import DiagnoseConfig
from studfinder.verbs.diagnose_work import diagnosed
from studfinder.verbs.load import load_as
from studfinder.verbs.results import write_sheet

DIAGNOSIS_FILE, RECIPE_FILE = "diagnosis.json", "recipe.json"


@dataclass(frozen=True)
class DiagnosePlan(Presented):
    """Both models, and what determines the diagnosis."""

    made: LM
    original: LM
    outputs: tuple[list[list[int]], list[list[float]]] | None
    config: DiagnoseConfig
    settings: dict[str, Any]


def plan_diagnose(model: Any, config: DiagnoseConfig) -> DiagnosePlan:
    """Load both.

    Raises:
        StudfinderError: the original is neither named nor at hand, `outputs` cannot be read, or what `load` raises.
    """
    outputs = None if config.outputs is None else engine_outputs(Path(config.outputs))
    if not isinstance(model, LM):
        source_named(os.fspath(model), config.revision)  # that there is no such model is said first
    against = config.against if config.against is not None else original_named(model)
    made = load_as(model, config, **_half(config))
    original = against if isinstance(against, LM) else load_as(against, config, **_half(config))
    settings = {
        **identity(config),
        "text": str(config.text),
        "model": made.source.id,
        "model_hash": content_hash(made) if isinstance(model, LM) else cached_content_hash(made),
        "config": config_hash(made),
        "against": original.source.id,
        "against_hash": content_hash(original) if isinstance(against, LM) else cached_content_hash(original),
        "against_config": config_hash(original),
        "dtype": str(made.dtype).removeprefix("torch."),
        "outputs": "" if outputs is None else key_of({"outputs": repr(outputs)}),
        "scoring": SCORING,
    }
    return DiagnosePlan(made, original, outputs, config, settings)


def _half(config: DiagnoseConfig) -> dict[str, Any]:
    """Each of the two models may take half of the memory."""
    return {} if config.memory is None else {"memory": as_bytes(config.memory) // 2}


@takes(DiagnoseConfig)
def diagnose(model: LM | str | os.PathLike[str], config: DiagnoseConfig) -> Diagnosis:
    """What a checkpoint lost against what it was made from, in which parts, by which fault, and what mends it.

    Args:
        model: the checkpoint: from `sf.load`, or what it takes.
        config: how; or its fields as keywords. `against` is the original; without it the one that the checkpoint's own
            card or config names, if it is at hand.

    Raises:
        StudfinderError: see `plan_diagnose`; the two are not of one shape.
    """
    return run_diagnose(plan_diagnose(model, config), command="sf.diagnose(model)")[0]


def run_diagnose(plan: DiagnosePlan, *, write: bool = False, command: str = "") -> tuple[Diagnosis, Path | None]:
    """Carry out what was planned, or read it where it is finished; with the run's folder, if there is one."""
    if plan.config.out is None and not write:
        return _diagnosed(plan, command, "its recipe"), None
    run = diagnose_run(plan)
    found = None if plan.config.overwrite else run.finished()
    if found is not None:
        return read(found, Diagnosis), found
    sources = [lm.source.folder for lm in (plan.made, plan.original)]
    with run.work(overwrite=plan.config.overwrite, sources=sources) as work:
        done = _diagnosed(plan, command, str(run.path / RECIPE_FILE))
        if done.recipe is not None:
            write_text(work.path / RECIPE_FILE, to_json(done.recipe, indent=1) + "\n")
        write_text(work.path / DIAGNOSIS_FILE, to_json(done, indent=1))
        write_sheet(work.path, diagnosis_sheet(done))
    return done, run.path


def diagnose_run(plan: DiagnosePlan) -> Run:
    """The run of a planned diagnosis; nothing is written."""
    return run_of(
        "diagnose", plan.made.source.id, plan.settings, result=DIAGNOSIS_FILE, out=plan.config.folder, before={}
    )


def _diagnosed(plan: DiagnosePlan, command: str, recipe: str) -> Diagnosis:
    return diagnosed(plan.original, plan.made, plan.outputs, plan.config, plan.settings, command, recipe)


def gate_values(found: Diagnosis) -> dict[str, Interval | bool]:
    """What a gate may ask for."""
    return {
        "kl": found.kl,
        "back": found.back,
        "agreement": found.agreement,
        "perplexity": found.perplexity,
        "ill": found.ill,
    }

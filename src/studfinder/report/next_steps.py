"""What to run next, by what a record says."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from studfinder.records import (
    Diagnosis,
    Equivalence,
    Findings,
    Plan,
    Quantization,
    Result,
    Scorecard,
    Training,
)


@dataclass(frozen=True, kw_only=True)
class NextStep:
    """A command, and why one would run it."""

    command: str
    why: str


def next_steps(record: Any, run: str = "") -> list[NextStep]:
    """The commands that follow from a record, the first one first.

    Args:
        record: None, or one that nothing follows from, has none.
        run: its folder as a user would type it; "" becomes RUN.
    """
    if type(record) not in _STEPS:
        return []
    return _STEPS[type(record)](record, run or "RUN")


def _scan(findings: Findings, run: str) -> list[NextStep]:
    model = findings.model.id
    plan = _command("plan", model, bits="4.5")
    if not findings.proven_numbers:
        said = "Nothing stands out" if not findings.super_weights else "Nothing is proven"
        return [NextStep(command=plan, why=f"{said}; that says little about rounding. This measures it.")]
    return [
        NextStep(command=plan, why="Which matrices bear few bits, measured, at 4.5 bits a weight."),
        NextStep(
            command=_command("equalize", model, findings=run, out=f"{_named(model)}-equal"),
            why="The same model in a form that is easier to round, for any quantiser.",
        ),
        NextStep(command=_recipe(run, "llm-compressor"), why="What was found, spared in the language of another tool."),
    ]


def _scorecard(card: Scorecard, run: str) -> list[NextStep]:
    model, against = card.model.id, card.run.settings.get("against")
    if isinstance(against, str) and against:
        why = "Something got worse: which part it is." if any(line.worse for line in card.measured) else "Part by part."
        return [NextStep(command=_command("diagnose", model, against=against), why=why)]
    if card.edits:
        return [NextStep(command=_command("measure", model), why="The same measures of the model as it is.")]
    return [NextStep(command=_command("scan", model), why="Which single numbers these scores stand on.")]


def _plan(plan: Plan, run: str) -> list[NextStep]:
    model = plan.model.id
    method = {} if plan.method == "rtn" else {"method": plan.method}
    checkpoint = _command("quantize", model, plan=run, **method, out=f"{_named(model)}-planned")
    tools = [one.tool for one in plan.solutions if one.tool]
    return [
        NextStep(command=checkpoint, why="The plan carried out: a checkpoint."),
        *(NextStep(command=_recipe(run, tool), why=f"The plan for {tool}.") for tool in tools),
    ]


def _diagnosis(found: Diagnosis, run: str) -> list[NextStep]:
    what, _, line = found.mend.partition(": studfinder ")
    mend = [NextStep(command=f"studfinder {line}", why=f"{what}.")] if line else []
    again = _command("measure", found.model.id, against=found.original.id)
    return [*mend, NextStep(command=again, why="What it can still do, beside the original.")]


def _equivalence(made: Equivalence, run: str) -> list[NextStep]:
    if not made.changes:
        why = "There is nothing to equalise; this says which matrices need bits."
        return [NextStep(command=_command("plan", made.model.id, bits="4.5"), why=why)]
    rounded = _command("quantize", run, out=f"{run}-w4")
    return [NextStep(command=rounded, why="Rounded here; or take it to your own tool.")]


def _experiment(result: Result, run: str) -> list[NextStep]:
    if not result.models:
        return []
    again = _command("experiment", result.name, model="MODEL")
    beside = _command("report", run, "OTHER")
    return [
        NextStep(command=again, why="The same of another model."),
        NextStep(command=beside, why="Both side by side."),
    ]


def _training(record: Training, run: str) -> list[NextStep]:
    return [NextStep(command=_command("scan", f"{run}/model"), why="What stands out in the model that was trained.")]


def _quantization(done: Quantization, run: str) -> list[NextStep]:
    return [
        NextStep(command=_command("measure", run, against=done.model), why="What was lost."),
        NextStep(command=_command("diagnose", run, against=done.model), why="Where it was lost."),
    ]


_STEPS: dict[type, Callable[[Any, str], list[NextStep]]] = {
    Findings: _scan,
    Scorecard: _scorecard,
    Plan: _plan,
    Diagnosis: _diagnosis,
    Equivalence: _equivalence,
    Result: _experiment,
    Training: _training,
    Quantization: _quantization,
}


def _command(verb: str, *words: str, **options: str) -> str:
    """A command line of ours."""
    every = [*words, *(part for name, value in options.items() for part in (f"--{name}", value))]
    return f"studfinder {verb} {shlex.join(every)}"


def _recipe(run: str, tool: str) -> str:
    return _command("recipe write", run, **{"for": tool})


def _named(model: str) -> str:
    return PurePath(model).name

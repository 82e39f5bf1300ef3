"""A trained model trained on: does it unlearn its outliers when it need not have them? (Ours.)

What it asks: variants of attention that promise fewer outliers were shown on models trained from scratch. Given to a
trained model with a start that changes no bit of it (gates at exactly 1/2 with W_o doubled; KV shift at (1, 0)), do a
few hundred or thousand steps of ordinary training make the massive activation and the need for the super weight
shrink, and do eight-bit activations get cheaper? And what if the super weight itself is kept out of training, frozen at
its value or pulled to zero over the first half: does the model learn to do without it? Nearest in print: Quantizable
Transformers (arXiv 2306.12929) fine-tunes OPT-1.3B for 4,000 steps with gates, and ends with an inf norm of 50.9 and a
kurtosis of 665 where plain fine-tuning has 79.3 and 2,086.

How: the same windows of text in the same order for every arm. Before, during and after: the largest activation and
where it is, kurtosis, sinks; the need for the super weight, KL(model || model with it set to zero); test loss; loss
with weights and activations in eight bits. Controls: plain training, which every arm is set against on the same
windows, since text like the test text lowers the loss by itself; and, for the decayed super weight, the weight nearest
in size of the same matrix, decayed alike. Intervals are over test windows of one training run.

What to look at: whether the need falls in any arm more than in plain training; and how much of what the model loses
when its super weight is zeroed untrained is won back when it is decayed in training.
"""

from __future__ import annotations

import copy
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from studfinder.edits import matched_controls
from studfinder.errors import StudfinderError
from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.experiments.finetune_draw import draw
from studfinder.experiments.finetune_tables import finetune_notes, tables_of
from studfinder.experiments.held_weights import LOG_PREFIX, Hold, Needs, WeightPlaces, values_of, without
from studfinder.experiments.trained import recipe_of
from studfinder.experiments.w8a8 import Windows, w8a8_losses
from studfinder.experiments.weights import load_findings
from studfinder.models import LM, load
from studfinder.runs import key_of
from studfinder.training import Outliers, TextSource, TrainingRecipe, fit, look, put_in, tokenized, variants_from
from studfinder.training.estimate import faster_precision
from studfinder.training.trainable import check_trainable

__all__ = ["ARMS", "EXPERIMENT", "Arm", "draw", "run"]

_COURSE = {
    "text": "wikipedia",
    "length": 512,
    "batch": 1,
    "lr": 5e-5,
    "schedule": "cosine",
    "precision": "auto",
    "weights": 1,
}
EXPERIMENT = Experiment(
    name="outlier-free/finetune",
    paper="2411.07191",
    shows="ours",
    summary="Trained on with gates, KV shift or without its super weight, does a model unlearn its outliers?",
    needs=(
        "about an hour, 5 GB of memory and 4 GB of disk with smollm2 on two cores; preset paper eight hours "
        "(estimated from 3 CPU seconds a step of 512 tokens; plus the scan that finds the super weight)"
    ),
    presets={
        "cpu": {**_COURSE, "steps": 150, "warmup": 10, "look_every": 30, "keep_every": 75, "limit": 16, "watched": 4},
        "paper": {
            **_COURSE,
            "steps": 2000,
            "warmup": 100,
            "look_every": 100,
            "keep_every": 500,
            "limit": 48,
            "watched": 8,
        },
    },
)
"""`weights`: how many of the proven super weights, the largest effect first, are held and taken away together; `limit`:
test windows; `watched`: how many of them are looked at on the way; `keep_every`: steps between checkpoints, which are
12 bytes a parameter each."""


@dataclass(frozen=True)
class Arm:
    """One way to train on.

    Attributes:
        attention: variants that are put in, at their exact starts.
        held: which weights are kept out of training: the "super" weights or their "control".
        decayed: whether those are pulled to zero over the first half of the steps.
    """

    attention: tuple[str, ...] = ()
    held: str = ""
    decayed: bool = False


_PLAIN = "plain"
ARMS = {
    _PLAIN: Arm(),
    "half-gates": Arm(attention=("gated",)),
    "KV shift": Arm(attention=("kv_shift",)),
    "super weight frozen": Arm(held="super"),
    "super weight decayed": Arm(held="super", decayed=True),
    "other weight decayed": Arm(held="control", decayed=True),
}


@dataclass(frozen=True)
class Course:
    """What all arms share.

    Attributes:
        source, recipe: text and optimisation.
        windows, calibration: test windows, and windows of the training text for static ranges.
        groups: "super" and "control", as (parameter, index) pairs; empty if no super weight is proven.
        watched: how many of the windows are looked at on the way.
    """

    source: TextSource
    recipe: TrainingRecipe
    windows: Windows
    calibration: Windows
    groups: dict[str, WeightPlaces]
    watched: int


def run(bench: Bench) -> Outcome:
    """Every arm on every model."""
    outcome = Outcome([])
    for name in bench.models:
        with bench.model(name) as lm:
            seen = _arms(bench, name, lm)
        outcome.tables += tables_of(name, seen)
        outcome.notes += finetune_notes(name, seen, bench.settings)
        outcome.data.setdefault("models", {})[name] = seen
    return outcome


def _arms(bench: Bench, name: str, lm: LM) -> dict[str, Any]:
    """What was measured of the untrained model and of each arm."""
    _check(bench, lm)
    found = bench.once("super weights", partial(_weights, bench, lm))
    groups = {kind: found[kind] for kind in ("super", "control") if found[kind]}
    precision = bench.settings["precision"]
    if precision == "auto":  # settled once, so that a run is the same wherever it resumes
        precision = bench.once("precision", partial(faster_precision, lm.anatomy.hidden))
    course = _course(bench, lm, groups, precision)
    arms = {label: arm for label, arm in ARMS.items() if not arm.held or arm.held in groups}
    bench.progress(f"{name}, untrained", 0, len(arms) + 1)
    seen: dict[str, Any] = {
        "weights": found["names"],
        "precision": precision,
        "windows": course.source.train_windows,
        "watched": course.watched,
        "untrained": bench.once("untrained", lambda: measured(load(_own(lm)), course)),
        "arms": {},
    }
    for number, (label, arm) in enumerate(arms.items(), 1):
        bench.progress(f"{name}, {label}", number, len(arms) + 1)
        folder = _checkpoints(bench, name, label)
        key = key_of({**bench.settings, "arm": label, "weights of": bench.cards[-1].content_hash})
        seen["arms"][label] = bench.once(f"arm {label}", partial(trained, lm, arm, course, folder, key))
        shutil.rmtree(folder, ignore_errors=True)  # only now: the step is remembered
    bench.progress(f"{name}, trained", len(arms) + 1, len(arms) + 1)
    return seen


def _check(bench: Bench, lm: LM) -> None:
    s = bench.settings
    check_trainable(lm, s["length"])
    for setting in ("watched", "weights"):
        if s[setting] < 1:
            raise StudfinderError(f"setting {setting}={s[setting]}", expected="1 or more")


def _weights(bench: Bench, lm: LM) -> dict[str, Any]:
    """The proven super weights, the largest effect first, and for each the weight of its matrix nearest in size."""
    findings = load_findings(bench, lm)
    proven = sorted(findings.proven, key=lambda weight: -weight.effect.kl.value if weight.effect else 0.0)
    chosen = proven[: bench.settings["weights"]]
    taken = [(weight.parameter, weight.index) for weight in findings.super_weights]
    controls: list[tuple[str, list[int]]] = []
    for weight in chosen:
        own = [index for parameter, index in taken if parameter == weight.parameter]
        # Of two, the first is the nearest in size and the second the nearest in contribution.
        target = matched_controls(lm, weight, findings, count=2, exclude=own)[0]
        controls.append((target.parameter, [int(axis) for axis in target.entries[0] if axis is not None]))
        taken.append((target.parameter, tuple(controls[-1][1])))
    return {
        "names": [str(weight) for weight in chosen],
        "super": [(weight.parameter, list(weight.index)) for weight in chosen],
        "control": controls,
    }


def _course(bench: Bench, lm: LM, groups: dict[str, WeightPlaces], precision: str) -> Course:
    s = bench.settings
    # As much text as the steps and the test windows take; the last twentieth of the windows is for testing.
    windows = max(s["steps"] * s["batch"] * 20 // 19, s["limit"] * 20) + 20
    source, _ = tokenized(s["text"], s["length"], None, lm=lm, limit=windows * s["length"])

    def rows(split: Any, count: int) -> list[list[int]]:
        return [source.row(split, s["seed"], index)["input_ids"].tolist() for index in range(count)]

    test = rows("test", min(s["limit"], source.test_rows))
    course = recipe_of({**s, "test": len(test)}, s["seed"], precision)
    return Course(source, course, test, rows("train", 8), groups, min(s["watched"], len(test)))


def _checkpoints(bench: Bench, name: str, label: str) -> Path:
    bench.work.keep()
    return bench.folder / "checkpoints" / f"{bench.models.index(name)}-{label.replace(' ', '-')}"


def _own(lm: LM) -> Any:
    """A copy to train, fp32."""
    return copy.deepcopy(lm.model).float()


def trained(lm: LM, arm: Arm, course: Course, folder: Path | None, key: str) -> dict[str, Any]:
    """Train a copy of the model one way; what came of it. "skipped" says why there is nothing.

    Raises:
        KeyboardInterrupt: after Ctrl-C; there is a checkpoint to go on from.
    """
    begun = time.monotonic()
    try:
        model = put_in(_own(lm), variants_from(arm.attention), trained=True)
    except StudfinderError as error:
        return {"skipped": str(error)}
    watches: list[Any] = [Outliers(course.source, sequences=course.watched)]
    if arm.held:
        until = max(1, course.recipe.steps // 2) if arm.decayed else None
        watches.insert(0, Hold(model, course.groups[arm.held], until))
    if "super" in course.groups:
        watches.append(Needs(course.windows[: course.watched], course.groups["super"]))
    fitted = fit(model, course.source, course.recipe, folder=folder, key=key, callbacks=watches)
    if fitted.stopped == "interrupted":
        raise KeyboardInterrupt
    if fitted.stopped:
        return {"skipped": f"training {fitted.stopped} after step {fitted.log[-1]['step']}"}
    return {
        **measured(load(fitted.model), course),
        "curves": {
            "training loss": fitted.curve("loss"),
            "test loss": fitted.curve("eval_loss"),
            "top activation": fitted.curve("outliers/top_activation"),
            "kurtosis": fitted.curve("outliers/kurtosis"),
            "top sink": fitted.curve("outliers/top_sink"),
            "need": fitted.curve(LOG_PREFIX + "need"),
            "value": fitted.curve(LOG_PREFIX + "value"),
        },
        "seconds": round(time.monotonic() - begun, 1),
    }


def measured(lm: LM, course: Course) -> dict[str, Any]:
    """Everything that is measured before and after, in fp32; losses are one a test window, nats a token."""
    return {
        **without(lm, course.windows, course.groups),
        "outliers": look(lm, course.windows[: course.watched]).summary,
        "eight bits": w8a8_losses(lm, course.windows, course.calibration),
        "values": {kind: values_of(lm.model, places) for kind, places in course.groups.items()},
    }

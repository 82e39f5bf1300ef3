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
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from studfinder.edits import matched_controls
from studfinder.errors import StudfinderError
from studfinder.experiments.finetune_tables import DECAYED, OTHER, PLAIN, charts_of, finetune_notes, tables_of
from studfinder.experiments.held_weights import Hold, WeightPlaces, needs, values_of, without
from studfinder.experiments.w8a8 import Windows, w8a8_losses
from studfinder.experiments.weights import load_findings
from studfinder.models import LM, cached_content_hash, load
from studfinder.records.config import option
from studfinder.runs import key_of
from studfinder.studies.experiment import Bench, Experiment, Outcome
from studfinder.studies.trained import CourseConfig, Watcher, all_trained
from studfinder.training import OutlierCallback, TextSource, TrainingRecipe, fit, look, put_in, tokenized, variants_from
from studfinder.training.estimate import faster_precision
from studfinder.training.trainable import check_trainable


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(CourseConfig):
    """On which text, and what is looked at."""

    text: str = option(
        "wikipedia", help="What is read: wikitext2, c4, wikipedia, a file, a folder or a data set of the hub."
    )
    precision: Literal["auto", "fp32", "bf16"] = option("auto", help="Of matrix products in training; auto is faster.")
    keep_every: int = option(75, help="Steps between checkpoints, which are 12 bytes a parameter each.", least=1)
    weights: int = option(
        1,
        help="How many of the proven super weights, the largest effect first, are held and taken away as one.",
        least=1,
    )
    limit: int = option(16, help="Test windows.", least=1)
    watched: int = option(4, help="How many of them are looked at on the way.", least=1)


_CPU = FinetuneConfig(length=512, batch=1, lr=5e-5, schedule="cosine", steps=150, warmup=10, look_every=30)
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
        "cpu": _CPU,
        "paper": replace(_CPU, steps=2000, warmup=100, look_every=100, keep_every=500, limit=48, watched=8),
    },
)


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


ARMS = {
    PLAIN: Arm(),
    "half-gates": Arm(attention=("gated",)),
    "KV shift": Arm(attention=("kv_shift",)),
    "super weight frozen": Arm(held="super"),
    DECAYED: Arm(held="super", decayed=True),
    OTHER: Arm(held="control", decayed=True),
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


def run(bench: Bench, lm: LM) -> Outcome:
    """The untrained model, and every arm."""
    own = bench.config
    check_trainable(lm, own.length)
    found = bench.once("super weights", partial(_weights, bench, lm))
    groups = {kind: found[kind] for kind in ("super", "control") if found[kind]}
    precision = own.precision
    if precision == "auto":  # settled once, so that a run is the same wherever it resumes
        precision = bench.once("precision", partial(faster_precision, lm.anatomy.hidden))
    course = _course(bench, lm, groups, precision)
    bench.progress("untrained", 0, 1)
    untrained = bench.once("untrained", lambda: measured(load(_own(lm)), course))
    key = {"config": own, "weights of": cached_content_hash(lm)}
    arms = {label: arm for label, arm in ARMS.items() if not arm.held or arm.held in groups}
    trainings = {
        f"arm {label}": partial(_trained, lm, arm, course, key_of({**key, "arm": label})) for label, arm in arms.items()
    }
    trained = all_trained(bench, trainings)
    seen = {
        "weights": found["names"],
        "precision": precision,
        "windows": course.source.train_windows,
        "watched": course.watched,
        "untrained": untrained,
        "arms": {label: trained[f"arm {label}"] for label in arms},
    }
    return Outcome(tables_of(seen), [_size(seen, own), *finetune_notes(seen)], charts_of(seen), seen)


def _size(seen: dict[str, Any], own: FinetuneConfig) -> str:
    step = own.batch * own.length
    passes = own.steps * own.batch / seen["windows"]
    often = f", {passes:.2g} times over its training windows" if passes > 1 else ""
    return (
        f"{own.steps:,} steps of {step:,} tokens ({own.steps * step:,} in all{often}) on {own.text}, one run an arm, "
        f"learning rate {own.lr:g}, {seen['precision']}. This shows what so short a training does at this rate; an "
        "outlier that stays may go with more tokens, and one seed says nothing of another. Test windows are of the "
        "same text, so a lower loss is in part the text's."
    )


def _weights(bench: Bench, lm: LM) -> dict[str, Any]:
    """The proven super weights, the largest effect first, and for each the weight of its matrix nearest in size."""
    findings = load_findings(bench, lm)
    chosen = findings.strongest[: bench.config.weights]
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
    own = bench.config
    # As much text as the steps and the test windows take; the last twentieth of the windows is for testing.
    windows = max(own.steps * own.batch * 20 // 19, own.limit * 20) + 20
    source, _ = tokenized(own.text, own.length, None, lm=lm, limit=windows * own.length)

    def rows(split: Any, count: int) -> list[list[int]]:
        return [source.row(split, own.seed, index)["input_ids"].tolist() for index in range(count)]

    test = rows("test", min(own.limit, source.test_rows))
    recipe = own.recipe(test=len(test), precision=precision)
    return Course(source, recipe, test, rows("train", 8), groups, min(own.watched, len(test)))


def _own(lm: LM) -> Any:
    """A copy to train, fp32."""
    return copy.deepcopy(lm.model).float()


def _trained(lm: LM, arm: Arm, course: Course, key: str, folder: Path) -> dict[str, Any]:
    """Train a copy of the model one way; what came of it. "skipped" says why there is nothing.

    Raises:
        KeyboardInterrupt: after Ctrl-C; there is a checkpoint to go on from.
    """
    begun = time.monotonic()
    try:
        model = put_in(_own(lm), variants_from(arm.attention), trained=True)
    except StudfinderError as error:
        return {"skipped": str(error)}
    watches: list[Any] = [OutlierCallback(course.source, sequences=course.watched)]
    if arm.held:
        until = max(1, course.recipe.steps // 2) if arm.decayed else None
        watches.insert(0, Hold(model, course.groups[arm.held], until))
    if "super" in course.groups:
        see = partial(needs, course.windows[: course.watched], course.groups["super"])
        watches.append(Watcher("weights/", see))
    fitted = fit(model, course.source, course.recipe, folder=folder, key=key, callbacks=watches)
    if fitted.stopped == "interrupted":
        raise KeyboardInterrupt
    if fitted.stopped:
        return {"skipped": f"training {fitted.stopped} after step {fitted.log[-1]['step']}"}
    logged = {
        "training loss": "loss",
        "test loss": "eval_loss",
        "top activation": "outliers/top_activation",
        "kurtosis": "outliers/kurtosis",
        "top sink": "outliers/top_sink",
        "need": "weights/need",
        "value": "weights/value",
    }
    return {
        **measured(load(fitted.model), course),
        "curves": {name: fitted.curve(entry) for name, entry in logged.items()},
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

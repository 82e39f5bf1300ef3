"""What the training experiments share: how models are trained, and every kind of model at every seed."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainerCallback

from studfinder.models import LM, load
from studfinder.records.config import option
from studfinder.runs import first_process, key_of
from studfinder.studies.experiment import Bench, StudyConfig
from studfinder.studies.seeds import DIVERGED, Cells, Curve, Trained
from studfinder.training import ModelShape, OutlierCallback, TrainingRecipe, build_model, fit, variants_from
from studfinder.training.fit import Fitted
from studfinder.training.outliers import PREFIX
from studfinder.training.recipe import Schedule
from studfinder.training.streams import SequenceSource

CHECKPOINTS = "checkpoints"
KEEP = 500
"""Steps between checkpoints at least: small models take seconds for as many."""


@dataclass(frozen=True, kw_only=True)
class CourseConfig(StudyConfig):
    """How a model is trained; see `training.TrainingRecipe`."""

    length: int = option(64, help="Tokens of a sequence.", least=2)
    steps: int = option(500, help="Optimizer steps.", least=1)
    batch: int = option(32, help="Sequences a step.", least=1)
    micro: int | None = option(None, help="Sequences a forward pass on one device; none is as many.", least=1)
    lr: float = option(2e-3, help="Learning rate after the warm-up.")
    warmup: int = option(50, help="Steps over which it rises from 0.", least=0)
    schedule: Schedule = option("constant", help="What becomes of it then.")
    look_every: int = option(50, help="Steps between evaluations.", least=1)

    def recipe(self, **more: Any) -> TrainingRecipe:
        """The recipe that this says, with more."""
        own = {name: value for name, value in vars(self).items() if name in TrainingRecipe.__dataclass_fields__}
        return TrainingRecipe(**{**own, **more})


@dataclass(frozen=True, kw_only=True)
class TrainedConfig(CourseConfig):
    """And at how many seeds. The precision is fixed, since models at several seeds are compared."""

    heads: int = option(4, help="Attention heads.", least=1)
    precision: Literal["fp32", "bf16"] = option("fp32", help="Of matrix products in training.")
    test: int = option(128, help="Sequences of an evaluation.", least=1)
    seeds: int = option(3, help="Models of each kind, at seeds from `seed` on.", least=1)


@dataclass(frozen=True, kw_only=True)
class SizedConfig(TrainedConfig):
    """And how large all models are."""

    vocabulary: int = option(64, help="Token ids.", least=1)
    hidden: int = option(64, help="Width.", least=1)

    def shape(self, layers: int, **more: Any) -> ModelShape:
        """Of so many blocks."""
        return ModelShape(layers=layers, hidden=self.hidden, heads=self.heads, **more)


class Watcher(TrainerCallback):
    """At each evaluation, what is seen of the model, into Trainer's log.

    Args:
        prefix: how the names begin there.
        see: numbers by name.
    """

    def __init__(self, prefix: str, see: Callable[[LM], Mapping[str, float]]) -> None:
        self.prefix, self.see = prefix, see

    def attach(self, trainer: Any) -> None:
        """Told by `fit`."""
        self.log = trainer.log

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.lm = load(model)  # once, and now: weights that are no longer finite are refused

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        model.eval()
        self.log({self.prefix + name: value for name, value in self.see(self.lm).items()})


@dataclass(frozen=True)
class ModelKind:
    """A kind of model, trained from scratch.

    Attributes:
        attention: variants, as `variants_from` reads them.
        callbacks: of Trainer. What they have seen they must log, since training may go on in another process.
    """

    shape: ModelShape
    attention: Sequence[str] = ()
    callbacks: Sequence[Any] = ()


def every_cell(
    bench: Bench,
    source: SequenceSource,
    kinds: Mapping[str, ModelKind],
    *,
    watch: bool = False,
    logged: str = "",
    finish: Callable[[Any], dict[str, Any]] = lambda model: {},
    minutes: float | None = None,
    **more: Any,
) -> Cells:
    """Train every kind of model at every seed: plain numbers of what came of each, by name, one a seed.

    Args:
        watch: look at outliers at each evaluation.
        logged: how the names of what the callbacks log begin; it is kept as curves under the rest of the names.
        finish: what else to measure of the trained model; nothing is, where training diverged.
        minutes: see `all_trained`; a kind has fewer seeds then.
        more: of the recipe, beside the config.
    """
    own = bench.config
    seeds = range(own.seed, own.seed + own.seeds)
    trainings: dict[str, Callable[[Path], Trained]] = {
        f"{name}, seed {seed}": partial(
            run_cell,
            source,
            kind,
            own.recipe(**{"seed": seed, "keep_every": max(own.look_every, KEEP), **more}),
            watch=watch,
            logged=logged,
            finish=finish,
        )
        for seed in seeds
        for name, kind in kinds.items()
    }
    found = all_trained(bench, trainings, minutes)
    return {name: [found[one] for seed in seeds if (one := f"{name}, seed {seed}") in found] for name in kinds}


def all_trained(
    bench: Bench, trainings: Mapping[str, Callable[[Path], Trained]], minutes: float | None = None
) -> dict[str, Trained]:
    """Carry out each training that is not done yet.

    Args:
        trainings: given a folder for checkpoints, which is removed once what came of the training is remembered.
        minutes: none is begun when those before took as many.
    """
    found: dict[str, Trained] = {}
    bench.work.keep()  # an interrupted one goes on from its checkpoint
    for number, (name, train) in enumerate(trainings.items()):
        if minutes is not None and sum(cell["seconds"] for cell in found.values()) >= 60 * minutes:
            break
        bench.progress(name, number, len(trainings))
        folder = bench.folder / CHECKPOINTS / re.sub(r"[^\w.-]+", "-", name)
        found[name] = bench.once(name, partial(train, folder))
        if first_process():
            shutil.rmtree(folder, ignore_errors=True)
    if first_process():
        shutil.rmtree(bench.folder / CHECKPOINTS, ignore_errors=True)
    return found


def run_cell(
    source: SequenceSource,
    kind: ModelKind,
    recipe: TrainingRecipe,
    folder: Path,
    *,
    watch: bool,
    logged: str,
    finish: Callable[[Any], dict[str, Any]],
) -> Trained:
    """Train one model from scratch; see `every_cell`."""
    variants = variants_from(kind.attention)
    model = build_model(kind.shape, variants, vocabulary=source.vocabulary, length=source.length, seed=recipe.seed)
    start = shift_scalars(model)
    resumed = folder.is_dir()
    begun = time.monotonic()
    data = {"source": source.settings(), "shape": kind.shape, "attention": list(kind.attention), "recipe": recipe}
    watches = [*([OutlierCallback(source)] if watch else []), *kind.callbacks]
    fitted = fit(model, source, recipe, folder=folder, key=key_of(data), callbacks=watches)
    if fitted.stopped == "interrupted":
        raise KeyboardInterrupt  # half a run is not remembered as a whole one
    # The loss is logged every few steps; what became of the model after the last entry shows in its weights alone.
    finite = all(bool(parameter.isfinite().all()) for parameter in fitted.model.parameters())
    stopped = fitted.stopped or (None if finite else DIVERGED)
    return {
        "accuracy": fitted.curve("eval_accuracy"),
        "test": fitted.curve("eval_loss"),
        "loss": fitted.curve("loss"),
        "stopped": stopped,
        "parameters": sum(parameter.numel() for parameter in fitted.model.parameters()),
        "shift": shift_scalars(fitted.model),
        "shift at the start": start,
        **({} if stopped else finish(fitted.model)),
        "seconds": round(time.monotonic() - begun, 1),
        **({"resumed": True} if resumed else {}),
        "outliers": _curves(fitted, PREFIX),
        **(_curves(fitted, logged) if logged else {}),
    }


def _curves(fitted: Fitted, prefix: str) -> dict[str, Curve]:
    """Everything logged under names that begin so."""
    names = dict.fromkeys(name for entry in fitted.log for name in entry if name.startswith(prefix))
    return {name.removeprefix(prefix): fitted.curve(name) for name in names}


def shift_scalars(model: Any) -> list[list[float]]:
    """(a1, a2, b1, b2) of every key/value head with KV shift, in order; NaN for a side that is not shifted."""
    from studfinder.attention.kv_shift.layer import KVShiftPart

    found: list[list[float]] = []
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, KVShiftPart):
                count = len(next(part.parameters()))
                nothing = (torch.ones(count), torch.zeros(count))
                sides = [part.scalars(side) if side in part.sides else nothing for side in ("key", "value")]
                found += torch.stack([*sides[0], *sides[1]], dim=1).tolist()
    return found

"""What the training experiments share: one model trained at one seed, and every model at every seed."""

from __future__ import annotations

import dataclasses
import re
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from studfinder.errors import StudfinderError
from studfinder.experiments.experiment import Bench
from studfinder.experiments.seeds import DIVERGED, Cells, Curve, Trained
from studfinder.runs import first_process, key_of
from studfinder.training import ModelShape, Outliers, TrainingRecipe, build_model, fit, variants_from
from studfinder.training.fit import Fitted
from studfinder.training.outliers import PREFIX
from studfinder.training.streams import SequenceSource

CHECKPOINTS = "checkpoints"
KEEP = 500
"""Steps between checkpoints, if the settings do not say: small models take seconds for as many."""


def run_cell(
    source: SequenceSource,
    vocabulary: int,
    shape: ModelShape,
    attention: Sequence[str],
    recipe: TrainingRecipe,
    *,
    watch: bool = False,
    callbacks: Sequence[Any] = (),
    logged: str = "",
    folder: Path | None = None,
    finish: Callable[[Any], dict[str, Any]] = lambda model: {},
) -> dict[str, Any]:
    """Train one model from scratch; plain numbers of what came of it.

    Args:
        watch: look at outliers at each evaluation.
        callbacks: of Trainer. What they have seen they must log, since training may go on in another process.
        logged: how the names of what the callbacks log begin; it is kept as curves under the rest of the names.
        folder: for checkpoints, from which an interrupted training goes on.
        finish: what else to measure of the trained model; nothing is, where training diverged.
    """
    model = build_model(shape, variants_from(attention), vocabulary=vocabulary, length=source.length, seed=recipe.seed)
    start = shift_scalars(model)
    resumed = folder is not None and folder.is_dir()
    begun = time.monotonic()
    fitted = fit(
        model,
        source,
        dataclasses.replace(recipe, keep_every=recipe.keep_every or max(recipe.look, KEEP)),
        folder=folder,
        key=key_of({"source": source.settings(), "shape": shape, "attention": list(attention), "recipe": recipe}),
        callbacks=[*([Outliers(source)] if watch else []), *callbacks],
    )
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


def every_cell(
    bench: Bench, names: Sequence[str], seeds: int, cell: Callable[[str, int, Path | None], Trained]
) -> Cells:
    """Run (name, seed) for each, remembering what is done; the cells by name, one a seed.

    Args:
        cell: given a name, a seed, and a folder for checkpoints, which is removed once the cell is remembered.
    """
    cells: Cells = {name: [] for name in names}
    total = len(names) * seeds
    bench.work.keep()  # an interrupted cell goes on from its checkpoint
    for seed in range(bench.settings["seed"], bench.settings["seed"] + seeds):
        for name in names:
            bench.progress(f"{name}, seed {seed}", sum(map(len, cells.values())), total)
            folder = bench.folder / CHECKPOINTS / re.sub(r"[^\w.-]+", "-", f"{name}-{seed}")
            cells[name].append(bench.once(f"{name}/seed {seed}", partial(cell, name, seed, folder)))
            if first_process():
                shutil.rmtree(folder, ignore_errors=True)
    if first_process():
        shutil.rmtree(bench.folder / CHECKPOINTS, ignore_errors=True)
    return cells


def recipe_of(settings: dict[str, Any], seed: int, precision: Any = None) -> TrainingRecipe:
    """The recipe that an experiment's settings say.

    Args:
        precision: instead of that of the settings; fp32 if neither says one.

    Raises:
        StudfinderError: the settings leave it open, and different machines would do different things.
    """
    precision = precision or settings.get("precision", "fp32")
    if precision == "auto":
        raise StudfinderError("precision auto", expected="fp32 or bf16, since models at several seeds are compared")
    names = ("steps", "batch", "micro", "lr", "warmup", "test", "look_every", "keep_every", "schedule")
    return TrainingRecipe(
        seed=seed, precision=precision, **{name: settings[name] for name in names if name in settings}
    )

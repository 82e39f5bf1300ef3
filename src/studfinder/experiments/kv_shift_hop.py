"""k-hop induction (arXiv 2411.19574, appendix H; the task is Sanford et al.'s, arXiv 2402.09268).

The paper: five vanilla layers degrade past 8 hops, with KV shift they still make few errors at 16. Five layers of width
64 on two cores see far fewer sequences than there, so that what is compared is how far each gets in the same steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.experiments.seeds import about, ended, label_of, seed_change, seed_mean
from studfinder.experiments.seeds_draw import COLOURS, mean_and_interval, on_one_grid
from studfinder.experiments.trained import every_cell, recipe_of, run_cell
from studfinder.records import Result, Table
from studfinder.report.style import MUTED, new_figure
from studfinder.training import ModelShape, TaskSource
from studfinder.training.streams import SequenceRows, collate
from studfinder.training.tasks import HopK

_MODELS: dict[str, list[str]] = {"vanilla": [], "KV shift": ["kv_shift"]}

EXPERIMENT = Experiment(
    trains=True,
    name="kv-shift/hop-k",
    paper="2411.19574",
    shows="appendix H",
    summary="How many hops of induction does a model of five layers learn, with and without KV shift?",
    needs="half an hour on two cores (no model is loaded: small ones are trained)",
    presets={
        "cpu": {
            "length": 65,
            "symbols": 4,
            "hops": 8,
            "layers": 5,
            "hidden": 64,
            "heads": 4,
            "steps": 800,
            "batch": 32,
            "lr": 1e-3,
            "warmup": 100,
            "look_every": 100,
            "test": 128,
            "seeds": 3,
        },
        "paper": {
            "length": 101,
            "symbols": 4,
            "hops": 16,
            "layers": 5,
            "hidden": 128,
            "heads": 4,
            "steps": 100_000,
            "batch": 32,
            "lr": 1e-4,
            "warmup": 1000,
            "look_every": 5000,
            "test": 512,
            "seeds": 3,
        },
    },
)


def run(bench: Bench) -> Outcome:
    """Accuracy by number of hops at the end of training."""
    s = bench.settings
    task = HopK(length=s["length"], symbols=s["symbols"], hops=s["hops"])
    shape = ModelShape(layers=s["layers"], hidden=s["hidden"], heads=s["heads"])

    def cell(name: str, seed: int, folder: Path | None) -> dict[str, Any]:
        by_hops = exact_tasks(s)
        return run_cell(
            TaskSource(task),
            task.vocabulary,
            shape,
            _MODELS[name],
            recipe_of(s, seed),
            folder=folder,
            finish=lambda model: {"by_hops": [accuracy(model, exact, s["test"]) for exact in by_hops]},
        )

    cells = every_cell(bench, list(_MODELS), s["seeds"], cell)
    rows = tuple(
        (
            k + 1,
            without_a_model(exact, s["test"]),
            *(seed_mean(seeds, partial(_at, k)) for seeds in cells.values()),
            seed_change(cells["KV shift"], cells["vanilla"], partial(_at, k)),
        )
        for k, exact in enumerate(exact_tasks(s))
    )
    table = Table(
        title=f"Accuracy by hops after {s['steps']} steps",
        columns=(
            "hops",
            "without a hop",
            *(label_of(name, seeds) for name, seeds in cells.items()),
            "KV shift minus vanilla",
        ),
        rows=rows,
        note="Without a hop: the best score on the same sequences of always answering this token, any other token, or "
        "the commonest answer. The same token never stands twice in a row, so that two hops often end on the same one.",
    )
    return Outcome([table], about(cells), cells)


def exact_tasks(settings: Mapping[str, Any]) -> list[HopK]:
    """The task at each number of hops alone."""
    length, symbols = int(settings["length"]), int(settings["symbols"])
    return [HopK(length=length, symbols=symbols, hops=k, exact=1) for k in range(1, int(settings["hops"]) + 1)]


def without_a_model(task: HopK, count: int) -> float:
    """The best score on the test sequences of an answer that needs no hop: this token, any other token (in the mean),
    or the one that is right most often."""
    batch = _test_batch(task, count)
    tokens_BT, labels_BT = batch["input_ids"][:, :-1], batch["labels"][:, 1:]
    asked_BT = labels_BT >= 0
    if not bool(asked_BT.any()):
        return float("nan")
    this = float((tokens_BT == labels_BT)[asked_BT].double().mean())
    other = (1 - this) / (task.symbols - 1)
    commonest = float(labels_BT[asked_BT].bincount().max() / asked_BT.sum())
    return max(this, other, commonest)


def _test_batch(task: HopK, count: int) -> dict[str, torch.Tensor]:
    rows = SequenceRows(TaskSource(task), "test", 0, count)
    return collate([rows[index] for index in range(count)])


def _at(k: int, cell: dict[str, Any]) -> float:
    """Accuracy at k + 1 hops."""
    return float(cell["by_hops"][k])


@torch.no_grad()
def accuracy(model: Any, task: HopK, count: int) -> float:
    """Share of right answers on test sequences of one number of hops."""
    batch = _test_batch(task, count)
    said_BT = model(input_ids=batch["input_ids"].to(model.device), use_cache=False).logits[:, :-1].argmax(dim=-1).cpu()
    labels_BT = batch["labels"][:, 1:]
    asked_BT = labels_BT >= 0
    return float((said_BT == labels_BT)[asked_BT].double().mean()) if bool(asked_BT.any()) else float("nan")


def draw(result: Result, width: float) -> dict[str, Figure]:
    """Accuracy over hops."""
    figure = new_figure(width, 330)
    axes = figure.add_subplot()
    for colour, (name, seeds) in zip(COLOURS, result.data.items(), strict=False):
        by_hops = [list(enumerate(cell["by_hops"], 1)) for cell in ended(seeds)]
        mean_and_interval(axes, *on_one_grid(by_hops), label_of(name, seeds), color=colour, marker="o")
    settings = result.run.settings
    floor = [without_a_model(task, int(settings["test"] or 0)) for task in exact_tasks(settings)]
    axes.plot(range(1, len(floor) + 1), floor, color=MUTED, linestyle=":", label="without a hop")
    axes.set_xlabel("hops")
    axes.set_ylabel("accuracy")
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside upper left", ncols=3 if width > 600 else 1)
    return {"hops": figure}

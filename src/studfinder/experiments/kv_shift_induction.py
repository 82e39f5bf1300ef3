"""Induction with one layer (arXiv 2411.19574, section 3.1 and appendix D, figures 2 and 3).

The paper: one vanilla layer fails; two vanilla layers and one layer with KV shift both reach nearly 100 %, the latter
much sooner; and narrow models (down to width 8) need the shift. There: vocabulary 8,000, length 512, width 1,024,
4,096 sequences a step on eight GPUs. The preset "cpu" keeps the generator and shrinks the rest. Its listing returns the
repeats' positions beside the tokens, so the loss is taken there alone (train_on "scored"); with `--set train_on=all`
every token is predicted, most of which nobody can, and learning takes several times as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from studfinder.records import Chart, Table
from studfinder.records.config import option
from studfinder.studies.experiment import Bench, Experiment, Outcome
from studfinder.studies.seeds import (
    DIVERGED,
    Cells,
    Trained,
    about,
    curves,
    ended,
    label_of,
    last,
    over,
    pairs,
    seed_change,
    seed_mean,
    steps_to,
)
from studfinder.studies.trained import ModelKind, TrainedConfig, every_cell
from studfinder.training import ModelShape, TaskSource
from studfinder.training.tasks import Induction

_MODELS: dict[str, tuple[int, list[str]]] = {
    "1 layer, KV shift": (1, ["kv_shift"]),
    "2 layers, vanilla": (2, []),
    "1 layer, vanilla": (1, []),
}
"""Layers and attention. The last one is the control: it cannot solve the task."""
LEVEL = 0.8
"""Accuracy that counts as solved."""


@dataclass(frozen=True, kw_only=True)
class InductionConfig(TrainedConfig):
    """Sizes of task and models."""

    vocabulary: int = option(256, help="Token ids.", least=1)
    train_on: Literal["scored", "all"] = option("scored", help="Which tokens are learned.")
    score: Literal["all", "first"] = option("all", help="Which repeats are scored.")
    widths: tuple[int, ...] = option((64, 32), help="Widths of the models.", commas=True)


EXPERIMENT = Experiment(
    trains=True,
    name="kv-shift/induction",
    paper="2411.19574",
    shows="figures 2 and 3",
    summary="Does one layer with KV shift learn induction where one vanilla layer cannot, and sooner than two?",
    needs="up to ten minutes on two quiet cores (no model is loaded: small ones are trained)",
    presets={
        "cpu": InductionConfig(batch=64, lr=1e-3, warmup=100, look_every=100, test=256),
        "paper": InductionConfig(
            vocabulary=8000,
            length=512,
            score="first",
            widths=(1024, 512, 256, 128, 64, 32, 16, 8),
            steps=10_000,
            batch=4096,
            lr=2e-4,
            warmup=1000,
            look_every=100,
            test=1024,
        ),
    },
)


def run(bench: Bench) -> Outcome:
    """Accuracy over steps of the three models, at each width and seed."""
    own = bench.config
    task = Induction(vocabulary=own.vocabulary, length=own.length, train_on=own.train_on, score=own.score)
    kinds = {
        f"{model}, width {width}": ModelKind(ModelShape(layers=layers, hidden=width, heads=own.heads), attention)
        for width in own.widths
        for model, (layers, attention) in _MODELS.items()
    }
    cells = every_cell(bench, TaskSource(task), kinds)
    return Outcome([_table(cells, own)], [*_notes(cells, own), *about(cells)], _charts(cells, own.widths), cells)


def _table(cells: Cells, own: InductionConfig) -> Table:
    rows = tuple(
        (
            label_of(name, seeds),
            seeds[0]["parameters"],
            seed_mean(seeds, last),
            " / ".join(_steps(cell, own) for cell in seeds),
        )
        for name, seeds in cells.items()
    )
    return Table(
        title=f"Accuracy on repeats after {own.steps} steps",
        columns=("model", "parameters", "accuracy", f"steps to {LEVEL:.0%}, by seed"),
        rows=rows,
        note=f"Guessing among the ids of a sequence scores {1 / own.length:.1%}. The paper (width 1,024): one "
        "vanilla layer fails, two vanilla layers and one with KV shift come near 100 %, the latter much sooner.",
    )


def _steps(cell: Trained, own: InductionConfig) -> str:
    if cell.get("stopped"):
        return DIVERGED
    steps = steps_to(cell, LEVEL)
    return f"not in {own.steps}" if steps == float("inf") else f"{steps:.0f}"


def _notes(cells: Cells, own: InductionConfig) -> list[str]:
    """The paper's three claims, each with what was seen: paired over seeds, which share their data."""
    notes = []
    for width in own.widths:
        shift, two, one = (cells[f"{model}, width {width}"] for model in _MODELS)
        compared = [(steps_to(a, LEVEL), steps_to(b, LEVEL)) for a, b in pairs(shift, two)]
        if not compared or not pairs(shift, one):
            notes.append(f"Width {width}: too many models diverged to compare them.")
            continue
        sooner = sum(a < b for a, b in compared)
        notes.append(
            f"Width {width}: one layer with KV shift is ahead of two vanilla layers by {seed_change(shift, two, last)} "
            f"and of one by {seed_change(shift, one, last)}; it reached {LEVEL:.0%} sooner than two vanilla layers in "
            f"{sooner} of {len(compared)} seeds."
        )
        if all(b == float("inf") for _, b in compared):
            notes.append(
                f"Width {width}: two vanilla layers did not get to {LEVEL:.0%} in {own.steps} steps "
                f"at learning rate {own.lr:g}. Whether they do in more is not asked here."
            )
    return notes


def _charts(cells: Cells, widths: tuple[int, ...]) -> list[Chart]:
    """Accuracy over steps at the largest width, and over widths at the end."""
    title = "accuracy on repeats"
    widest = {model: cells[f"{model}, width {max(widths)}"] for model in _MODELS}
    charts = [curves(widest, {"accuracy": f"{title}, width {max(widths)}"}, low=0)]
    if len(widths) > 1:
        at_end = {
            model: [[(w, last(cell))] for w in sorted(widths) for cell in ended(cells[f"{model}, width {w}"])]
            for model in _MODELS
        }
        plot = over(at_end, y=f"{title} at the end", x="width", log_x=True, low=0, percent=True)
        charts.append(Chart(name="width", plots=(plot,)))
    return charts

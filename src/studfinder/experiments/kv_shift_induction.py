"""Induction with one layer (arXiv 2411.19574, section 3.1 and appendix D, figures 2 and 3).

The paper: one vanilla layer fails; two vanilla layers and one layer with KV shift both reach nearly 100 %, the latter
much sooner; and narrow models (down to width 8) need the shift. There: vocabulary 8,000, length 512, width 1,024,
4,096 sequences a step on eight GPUs. The preset "cpu" keeps the generator and shrinks the rest. Its listing returns the
repeats' positions beside the tokens, so the loss is taken there alone (train_on "scored"); with `--set train_on=all`
every token is predicted, most of which nobody can, and learning takes several times as long.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.experiments.seeds import (
    DIVERGED,
    Cells,
    about,
    ended,
    label_of,
    last,
    lines,
    pairs,
    seed_change,
    seed_mean,
    steps_to,
)
from studfinder.experiments.seeds_draw import COLOURS, mean_and_interval, on_one_grid, one_panel
from studfinder.experiments.trained import every_cell, recipe_of, run_cell
from studfinder.records import Result, Table
from studfinder.report.style import new_figure
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

EXPERIMENT = Experiment(
    trains=True,
    name="kv-shift/induction",
    paper="2411.19574",
    shows="figures 2 and 3",
    summary="Does one layer with KV shift learn induction where one vanilla layer cannot, and sooner than two?",
    needs="up to ten minutes on two quiet cores (no model is loaded: small ones are trained)",
    presets={
        "cpu": {
            "vocabulary": 256,
            "length": 64,
            "train_on": "scored",
            "score": "all",
            "widths": [64, 32],
            "heads": 4,
            "steps": 500,
            "batch": 64,
            "lr": 1e-3,
            "warmup": 100,
            "look_every": 100,
            "test": 256,
            "seeds": 3,
        },
        "paper": {
            "vocabulary": 8000,
            "length": 512,
            "train_on": "scored",
            "score": "first",
            "widths": [1024, 512, 256, 128, 64, 32, 16, 8],
            "heads": 4,
            "steps": 10_000,
            "batch": 4096,
            "lr": 2e-4,
            "warmup": 1000,
            "look_every": 100,
            "test": 1024,
            "seeds": 3,
        },
    },
)


def run(bench: Bench) -> Outcome:
    """Accuracy over steps of the three models, at each width and seed."""
    s = bench.settings
    source = TaskSource(
        Induction(vocabulary=s["vocabulary"], length=s["length"], train_on=s["train_on"], score=s["score"])
    )

    def cell(name: str, seed: int, folder: Path | None) -> dict[str, Any]:
        model, _, width = name.partition(", width ")
        layers, attention = _MODELS[model]
        shape = ModelShape(layers=layers, hidden=int(width), heads=s["heads"])
        return run_cell(source, s["vocabulary"], shape, attention, recipe_of(s, seed), folder=folder)

    names = [f"{model}, width {width}" for width in s["widths"] for model in _MODELS]
    cells = every_cell(bench, names, s["seeds"], cell)
    return Outcome([_table(cells, s)], [*_notes(cells, s), *about(cells)], cells)


def _table(cells: Cells, settings: dict[str, Any]) -> Table:
    rows = tuple(
        (
            label_of(name, seeds),
            seeds[0]["parameters"],
            seed_mean(seeds, last),
            " / ".join(DIVERGED if cell.get("stopped") else _steps(cell, settings) for cell in seeds),
        )
        for name, seeds in cells.items()
    )
    return Table(
        title=f"Accuracy on repeats after {settings['steps']} steps",
        columns=("model", "parameters", "accuracy", f"steps to {LEVEL:.0%}, by seed"),
        rows=rows,
        note=f"Guessing among the ids of a sequence scores {1 / settings['length']:.1%}. The paper (width 1,024): one "
        "vanilla layer fails, two vanilla layers and one with KV shift come near 100 %, the latter much sooner.",
    )


def _steps(cell: dict[str, Any], settings: dict[str, Any]) -> str:
    steps = steps_to(cell, LEVEL)
    return f"not in {settings['steps']}" if steps == float("inf") else f"{steps:.0f}"


def _notes(cells: Cells, settings: dict[str, Any]) -> list[str]:
    """The paper's three claims, each with what was seen: paired over seeds, which share their data."""
    notes = []
    for width in settings["widths"]:
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
                f"Width {width}: two vanilla layers did not get to {LEVEL:.0%} in {settings['steps']} steps "
                f"at learning rate {settings['lr']:g}. Whether they do in more is not asked here."
            )
    return notes


def draw(result: Result, width: float) -> dict[str, Figure]:
    """Accuracy over steps at the largest width, and over widths at the end."""
    by_width = sorted({int(name.rpartition(" ")[2]) for name in result.data})
    widest = {model: result.data[f"{model}, width {by_width[-1]}"] for model in _MODELS}
    figures = {
        "steps": one_panel(width, lines(widest, "accuracy"), f"accuracy on repeats, width {by_width[-1]}", low=0)
    }
    if len(by_width) > 1:
        figure = new_figure(width, 330)
        axes = figure.add_subplot()
        for colour, model in zip(COLOURS, _MODELS, strict=False):
            seeds = zip(*(result.data[f"{model}, width {w}"] for w in by_width), strict=True)
            ends = [
                [(w, last(cell)) for w, cell in zip(by_width, cells, strict=True) if ended([cell])] for cells in seeds
            ]
            mean_and_interval(axes, *on_one_grid(ends), model, color=colour, marker="o")
        axes.set_xscale("log", base=2)
        axes.set_xticks(by_width, [str(w) for w in by_width])
        axes.set_xlabel("width")
        axes.set_ylabel("accuracy on repeats at the end")
        axes.set_ylim(bottom=0)
        figure.legend(loc="outside upper left", ncols=3 if width > 600 else 1)
        figures["width"] = figure
    return figures

"""3-grams learned by heart (arXiv 2411.19574, section 3.3): the paper finds that KV shift neither helps nor hurts.

There: about 200 rules (x1, x2) -> x3, models of 50 M, 0.4 M and 800 parameters. How rules and noise are mixed is not
said; ours is in `training.tasks.n_gram`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.experiments.seeds import about, against, ends_table, lines
from studfinder.experiments.seeds_draw import one_panel
from studfinder.experiments.trained import every_cell, recipe_of, run_cell
from studfinder.records import Result
from studfinder.training import ModelShape, TaskSource
from studfinder.training.tasks import NGram

_MODELS: dict[str, tuple[int, list[str]]] = {
    "1 layer, vanilla": (1, []),
    "1 layer, KV shift": (1, ["kv_shift"]),
    "2 layers, vanilla": (2, []),
    "2 layers, KV shift": (2, ["kv_shift"]),
}
_SCORES = {"accuracy": "answers right", "test": "nats an answer"}

EXPERIMENT = Experiment(
    trains=True,
    name="kv-shift/n-gram",
    paper="2411.19574",
    shows="section 3.3",
    summary="Does KV shift change how fast fixed 3-grams are learned? (The paper: no.)",
    needs="minutes on two cores (no model is loaded: small ones are trained)",
    presets={
        "cpu": {
            "vocabulary": 256,
            "length": 64,
            "rules": 200,
            "hidden": 32,
            "heads": 4,
            "steps": 500,
            "batch": 32,
            "lr": 2e-3,
            "warmup": 50,
            "look_every": 50,
            "test": 128,
            "seeds": 3,
        },
    },
)


def run(bench: Bench) -> Outcome:
    """Accuracy on the rules' answers over steps, for one and two layers with and without KV shift."""
    s = bench.settings
    source = TaskSource(NGram(vocabulary=s["vocabulary"], length=s["length"], rules=s["rules"]))

    def cell(name: str, seed: int, folder: Path | None) -> dict[str, Any]:
        layers, attention = _MODELS[name]
        shape = ModelShape(layers=layers, hidden=s["hidden"], heads=s["heads"])
        return run_cell(source, s["vocabulary"], shape, attention, recipe_of(s, seed), folder=folder)

    cells = every_cell(bench, list(_MODELS), s["seeds"], cell)
    notes = []
    for layers in ("1 layer", "2 layers"):
        pair = {name: cells[name] for name in _MODELS if name.startswith(layers)}
        notes += against(pair, f"{layers}, vanilla", _SCORES)
    title = f"3-grams after {s['steps']} steps"
    return Outcome([ends_table(title, cells, _SCORES, first="model")], [*notes, *about(cells)], cells)


def draw(result: Result, width: float) -> dict[str, Figure]:
    """Accuracy over steps."""
    return {"steps": one_panel(width, lines(result.data, "accuracy"), "answers right", low=0)}

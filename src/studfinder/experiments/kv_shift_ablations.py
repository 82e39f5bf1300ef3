"""Parts and forms of KV shift (arXiv 2411.19574, section 5.3), on induction instead of the paper's 1.5 B models.

The paper trains language models on 10 B tokens and finds K alone and V alone worse than both, and that gates
(a2 = 1 - a1) and clamping to [0, 1] do not help. On the toy task the same forms can be told apart within minutes; that
says which of them can do induction, not which is best for language.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from transformers import TrainerCallback

from studfinder.attention.kv_shift.layer import KVShiftPart
from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.experiments.seeds import about, against, ends_table, lines
from studfinder.experiments.seeds_draw import one_panel
from studfinder.experiments.trained import every_cell, recipe_of, run_cell
from studfinder.records import Result
from studfinder.training import ModelShape, TaskSource
from studfinder.training.tasks import Induction

_MODELS: dict[str, list[str]] = {
    "K and V": ["kv_shift"],
    "K alone": ["kv_shift:values=false"],
    "V alone": ["kv_shift:keys=false"],
    "gated": ["kv_shift:gated=true"],
    "clamped to [0, 1]": ["kv_shift"],
    "identity start": ["kv_shift:init=identity"],
    "vanilla": [],
}
_SCORES = {"accuracy": "accuracy on repeats", "test": "nats an answer"}

EXPERIMENT = Experiment(
    trains=True,
    name="kv-shift/ablations",
    paper="2411.19574",
    shows="section 5.3 (there: 1.5 B language models)",
    summary="Which parts of KV shift does one layer need to learn induction?",
    needs="minutes on two cores (no model is loaded: small ones are trained)",
    presets={
        "cpu": {
            "vocabulary": 128,
            "length": 64,
            "hidden": 64,
            "heads": 4,
            "steps": 400,
            "batch": 32,
            "lr": 2e-3,
            "warmup": 50,
            "look_every": 50,
            "test": 128,
            "seeds": 3,
        },
    },
)


class Clamp(TrainerCallback):
    """Puts the scalars back into [0, 1] after each step."""

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        for part in model.modules():
            if isinstance(part, KVShiftPart):
                for parameter in part.parameters():
                    parameter.clamp_(0, 1)


def run(bench: Bench) -> Outcome:
    """Accuracy over steps of one layer with each form."""
    s = bench.settings
    source = TaskSource(Induction(vocabulary=s["vocabulary"], length=s["length"], train_on="scored"))

    def cell(name: str, seed: int, folder: Path | None) -> dict[str, Any]:
        shape = ModelShape(layers=1, hidden=s["hidden"], heads=s["heads"])
        callbacks = [Clamp()] if name.startswith("clamped") else []
        return run_cell(
            source, s["vocabulary"], shape, _MODELS[name], recipe_of(s, seed), callbacks=callbacks, folder=folder
        )

    cells = every_cell(bench, list(_MODELS), s["seeds"], cell)
    title = f"One layer after {s['steps']} steps of induction"
    return Outcome(
        [ends_table(title, cells, _SCORES, first="shift")], [*against(cells, "K and V", _SCORES), *about(cells)], cells
    )


def draw(result: Result, width: float) -> dict[str, Figure]:
    """Accuracy over steps."""
    return {"steps": one_panel(width, lines(result.data, "accuracy"), "accuracy on repeats", low=0)}

"""Parts and forms of KV shift (arXiv 2411.19574, section 5.3), on induction instead of the paper's 1.5 B models.

The paper trains language models on 10 B tokens and finds K alone and V alone worse than both, and that gates
(a2 = 1 - a1) and clamping to [0, 1] do not help. On the toy task the same forms can be told apart within minutes; that
says which of them can do induction, not which is best for language.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from studfinder.attention.kv_shift.layer import KVShiftPart
from studfinder.studies.experiment import Bench, Experiment, Outcome
from studfinder.studies.seeds import about, against, curves, ends_table
from studfinder.studies.trained import ModelKind, SizedConfig, every_cell
from studfinder.training import TaskSource
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
    presets={"cpu": SizedConfig(vocabulary=128, steps=400)},
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
    own = bench.config
    source = TaskSource(Induction(vocabulary=own.vocabulary, length=own.length, train_on="scored"))
    kinds = {
        name: ModelKind(own.shape(1), attention, [Clamp()] if name.startswith("clamped") else [])
        for name, attention in _MODELS.items()
    }
    cells = every_cell(bench, source, kinds)
    table = ends_table(f"One layer after {own.steps} steps of induction", cells, _SCORES, first="shift")
    charts = [curves(cells, {"accuracy": _SCORES["accuracy"]}, low=0)]
    return Outcome([table], [*against(cells, "K and V", _SCORES), *about(cells)], charts, cells)

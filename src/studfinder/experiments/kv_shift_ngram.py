"""3-grams learned by heart (arXiv 2411.19574, section 3.3): the paper finds that KV shift neither helps nor hurts.

There: about 200 rules (x1, x2) -> x3, models of 50 M, 0.4 M and 800 parameters. How rules and noise are mixed is not
said; ours is in `training.tasks.n_gram`.
"""

from __future__ import annotations

from dataclasses import dataclass

from studfinder.records.config import option
from studfinder.studies.experiment import Bench, Experiment, Outcome
from studfinder.studies.seeds import about, against, curves, ends_table
from studfinder.studies.trained import ModelKind, SizedConfig, every_cell
from studfinder.training import TaskSource
from studfinder.training.tasks import NGram

_MODELS: dict[str, tuple[int, list[str]]] = {
    "1 layer, vanilla": (1, []),
    "1 layer, KV shift": (1, ["kv_shift"]),
    "2 layers, vanilla": (2, []),
    "2 layers, KV shift": (2, ["kv_shift"]),
}
_SCORES = {"accuracy": "answers right", "test": "nats an answer"}


@dataclass(frozen=True, kw_only=True)
class NGramConfig(SizedConfig):
    """And what is learned."""

    rules: int = option(200, help="3-grams to learn.", least=1)


EXPERIMENT = Experiment(
    trains=True,
    name="kv-shift/n-gram",
    paper="2411.19574",
    shows="section 3.3",
    summary="Does KV shift change how fast fixed 3-grams are learned? (The paper: no.)",
    needs="minutes on two cores (no model is loaded: small ones are trained)",
    presets={"cpu": NGramConfig(vocabulary=256, hidden=32)},
)


def run(bench: Bench) -> Outcome:
    """Accuracy on the rules' answers over steps, for one and two layers with and without KV shift."""
    own = bench.config
    source = TaskSource(NGram(vocabulary=own.vocabulary, length=own.length, rules=own.rules))
    kinds = {name: ModelKind(own.shape(layers), attention) for name, (layers, attention) in _MODELS.items()}
    cells = every_cell(bench, source, kinds)
    notes = []
    for layers in ("1 layer", "2 layers"):
        pair = {name: seeds for name, seeds in cells.items() if name.startswith(layers)}
        notes += against(pair, f"{layers}, vanilla", _SCORES)
    table = ends_table(f"3-grams after {own.steps} steps", cells, _SCORES, first="model")
    charts = [curves(cells, {"accuracy": _SCORES["accuracy"]}, low=0)]
    return Outcome([table], [*notes, *about(cells)], charts, cells)

"""k-hop induction (arXiv 2411.19574, appendix H; the task is Sanford et al.'s, arXiv 2402.09268).

The paper: five vanilla layers degrade past 8 hops, with KV shift they still make few errors at 16. Five layers of width
64 on two cores see far fewer sequences than there, so that what is compared is how far each gets in the same steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from studfinder.records import Chart, Series, Table, point
from studfinder.records.config import option
from studfinder.studies.experiment import Bench, Experiment, Outcome
from studfinder.studies.seeds import Cells, about, ended, label_of, over, seed_change, seed_mean
from studfinder.studies.trained import ModelKind, TrainedConfig, every_cell
from studfinder.training import ModelShape, TaskSource
from studfinder.training.streams import SequenceRows, collate
from studfinder.training.tasks import HopK

_MODELS: dict[str, list[str]] = {"vanilla": [], "KV shift": ["kv_shift"]}


@dataclass(frozen=True, kw_only=True)
class HopConfig(TrainedConfig):
    """Sizes of task and model."""

    length: int = option(65, help="Tokens of a sequence, the first of which says how many hops.", least=2)
    symbols: int = option(4, help="The alphabet.", least=2)
    hops: int = option(8, help="The most.", least=1)
    layers: int = option(5, help="Blocks.", least=1)
    hidden: int = option(64, help="Width.", least=1)

    def tasks(self) -> list[HopK]:
        """The task at each number of hops alone."""
        return [HopK(length=self.length, symbols=self.symbols, hops=k, exact=1) for k in range(1, self.hops + 1)]


EXPERIMENT = Experiment(
    trains=True,
    name="kv-shift/hop-k",
    paper="2411.19574",
    shows="appendix H",
    summary="How many hops of induction does a model of five layers learn, with and without KV shift?",
    needs="half an hour on two cores (no model is loaded: small ones are trained)",
    presets={
        "cpu": HopConfig(steps=800, lr=1e-3, warmup=100, look_every=100),
        "paper": HopConfig(
            length=101, hops=16, hidden=128, steps=100_000, lr=1e-4, warmup=1000, look_every=5000, test=512
        ),
    },
)


def run(bench: Bench) -> Outcome:
    """Accuracy by number of hops at the end of training."""
    own = bench.config
    source = TaskSource(HopK(length=own.length, symbols=own.symbols, hops=own.hops))
    shape = ModelShape(layers=own.layers, hidden=own.hidden, heads=own.heads)

    def by_hops(model: Any) -> dict[str, Any]:
        return {"by_hops": [accuracy(model, exact, own.test) for exact in own.tasks()]}

    kinds = {name: ModelKind(shape, attention) for name, attention in _MODELS.items()}
    cells = every_cell(bench, source, kinds, finish=by_hops)
    floor = [without_a_model(exact, own.test) for exact in own.tasks()]
    rows = tuple(
        (
            k + 1,
            score,
            *(seed_mean(seeds, partial(_at, k)) for seeds in cells.values()),
            seed_change(cells["KV shift"], cells["vanilla"], partial(_at, k)),
        )
        for k, score in enumerate(floor)
    )
    labels = (label_of(name, seeds) for name, seeds in cells.items())
    table = Table(
        title=f"Accuracy by hops after {own.steps} steps",
        columns=("hops", "without a hop", *labels, "KV shift minus vanilla"),
        rows=rows,
        note="Without a hop: the best score on the same sequences of always answering this token, any other token, or "
        "the commonest answer. The same token never stands twice in a row, so that two hops often end on the same one.",
    )
    return Outcome([table], about(cells), [_chart(cells, floor)], cells)


def without_a_model(task: HopK, count: int) -> float:
    """The best score on the test sequences of an answer that needs no hop: this token, any other token (in the mean),
    or the one that is right most often."""
    tokens_BT, labels_BT = _test_batch(task, count)
    asked_BT = labels_BT >= 0
    if not bool(asked_BT.any()):
        return float("nan")
    this = float((tokens_BT[:, :-1] == labels_BT)[asked_BT].double().mean())
    other = (1 - this) / (task.symbols - 1)
    commonest = float(labels_BT[asked_BT].bincount().max() / asked_BT.sum())
    return max(this, other, commonest)


def _test_batch(task: HopK, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, and what should be said at all but the last."""
    rows = SequenceRows(TaskSource(task), "test", 0, count)
    batch = collate([rows[index] for index in range(count)])
    return batch["input_ids"], batch["labels"][:, 1:]


def _at(k: int, cell: dict[str, Any]) -> float:
    """Accuracy at k + 1 hops."""
    return float(cell["by_hops"][k])


@torch.no_grad()
def accuracy(model: Any, task: HopK, count: int) -> float:
    """Share of right answers on test sequences of one number of hops. Our own forward pass: no measure scores the
    answers of a toy task, and `fit` evaluates on the task that it trains on."""
    tokens_BT, labels_BT = _test_batch(task, count)
    said_BT = model(input_ids=tokens_BT.to(model.device), use_cache=False).logits[:, :-1].argmax(dim=-1).cpu()
    asked_BT = labels_BT >= 0
    return float((said_BT == labels_BT)[asked_BT].double().mean()) if bool(asked_BT.any()) else float("nan")


def _chart(cells: Cells, floor: list[float]) -> Chart:
    """Accuracy over hops, and what needs no model."""
    found = {
        label_of(name, seeds): [list(enumerate(cell["by_hops"], 1)) for cell in ended(seeds)]
        for name, seeds in cells.items()
    }
    plot = over(found, x="hops", y="accuracy", low=0, percent=True)
    hops = tuple(range(1, len(floor) + 1))
    line = Series(name="without a hop", x=hops, points=tuple(map(point, floor)), dotted=True, quiet=True)
    return Chart(name="hops", plots=(replace(plot, series=(*plot.series, line)),))

"""Bigram-backcopy: the positive control for attention that needs no outliers (arXiv 2410.13835, sections 2 and 3).

On this task attention sinks and drained values on BOS grow in one layer within a minute, and residual peaks in three
layers with far more steps (`--preset paper`). The paper: a head copies after trigger tokens and is dormant elsewhere,
parked on BOS; with Adam the residual norm of BOS grows without end, with SGD or ReLU attention it does not. Here: what
grows first, and what becomes of the rest when one is blocked by a variant of attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from studfinder.models import LM
from studfinder.records import Table
from studfinder.records.config import option
from studfinder.sites import capture
from studfinder.studies.experiment import Bench, Experiment, Outcome
from studfinder.studies.seeds import (
    DIVERGED,
    Cells,
    Curve,
    Trained,
    about,
    against,
    curves,
    ended,
    label_of,
    last,
    seed_mean,
)
from studfinder.studies.trained import ModelKind, SizedConfig, Watcher, every_cell
from studfinder.training import TaskSource
from studfinder.training.tasks import Backcopy

_MODELS = {
    "vanilla": [],
    "gated": ["gated:kind=headwise"],
    "softmax-one": ["softmax_one"],
    "sink logit": ["sink_logit"],
    "KV shift": ["kv_shift"],
}
"""What gives a head another way to do nothing, and KV shift, which does not."""
_SEEN = {
    "sink": "attention of idle tokens to BOS",
    "peak": "residual norm of BOS over the median token's",
    "drain": "value norm of BOS over the median token's",
    "key": "key norm of BOS over the median token's",
}
_LOGGED = "first token/"


@dataclass(frozen=True, kw_only=True)
class BackcopyConfig(SizedConfig):
    """And how deep."""

    layers: int = option(1, help="Blocks.", least=1)


EXPERIMENT = Experiment(
    trains=True,
    name="outlier-free/backcopy",
    paper="2410.13835",
    shows="sections 2 and 3 (ours: the variants)",
    summary="On the task that grows sinks and residual peaks: what comes first, and what do other attentions do?",
    needs="minutes on two cores (no model is loaded: small ones are trained)",
    presets={
        # At a learning rate of 0.001 no head parks on BOS within thousands of steps.
        "cpu": BackcopyConfig(heads=1, steps=1000, lr=0.03, test=64),
        "paper": BackcopyConfig(
            length=256, layers=3, heads=1, steps=10_000, batch=512, lr=3e-4, warmup=0, look_every=100, test=256, seeds=5
        ),
    },
)


def run(bench: Bench) -> Outcome:
    """Every kind of attention at every seed, with BOS watched."""
    own = bench.config
    task = Backcopy(vocabulary=own.vocabulary, length=own.length)
    source = TaskSource(task)
    ids_BT = torch.stack([torch.from_numpy(source.row("test", 0, index)["input_ids"]) for index in range(8)])
    idle_BT = ids_BT > task.triggers  # after these there is nothing to copy
    watch = Watcher(_LOGGED, partial(_first_token, ids_BT, idle_BT))
    kinds = {name: ModelKind(own.shape(own.layers), attention, [watch]) for name, attention in _MODELS.items()}
    cells = every_cell(bench, source, kinds, watch=True, logged=_LOGGED, weight_decay=0.0)
    charts = [curves(cells, _SEEN, name="first-token", log=("peak",))]
    return Outcome([_table(cells, task), _order(cells)], [*_notes(cells), *about(cells)], charts, cells)


def _first_token(ids_BT: torch.Tensor, idle_BT: torch.Tensor, lm: LM) -> dict[str, float]:
    """What sets the first token apart: the largest over layers (the smallest, for values)."""
    layers = range(len(lm.anatomy.layers))
    kinds = ("residual", "query", "key", "value")
    tensors = capture(lm, ids_BT, [f"{kind}[{layer}]" for kind in kinds for layer in layers])
    norms = {kind: [_ratio(tensors[f"{kind}[{layer}]"]) for layer in layers] for kind in kinds}
    return {
        "sink": max(_sink(tensors[f"query[{layer}]"], tensors[f"key[{layer}]"], idle_BT) for layer in layers),
        # The last of several blocks is read by the head alone, which norms it.
        "peak": max(norms["residual"][:-1] or norms["residual"]),
        "drain": min(norms["value"]),
        "key": max(norms["key"]),
    }


def _ratio(tensor: torch.Tensor) -> float:
    """Norm of the first token over the median of the others', averaged over sequences. (B,T,C) or (B,G,T,D)."""
    norm = tensor.float().norm(dim=-1)
    norm = norm if norm.dim() == 3 else norm[:, None]
    return float((norm[..., 0] / norm[..., 1:].median(dim=-1).values).mean())


def _sink(query_BHTD: torch.Tensor, key_BGTD: torch.Tensor, idle_BT: torch.Tensor) -> float:
    """Largest over heads of the mean attention that idle tokens pay to the first."""
    idle_BT = idle_BT.to(query_BHTD.device)
    return float(max(first_BT[idle_BT].mean() for first_BT in to_the_first(query_BHTD, key_BGTD).unbind(dim=1)))


def to_the_first(query_BHTD: torch.Tensor, key_BGTD: torch.Tensor) -> torch.Tensor:
    """What each token pays to the first by plain softmax of Q and K, (B,H,T): a variant with another weight function
    may pay less."""
    (_, heads, tokens, width), groups = query_BHTD.shape, key_BGTD.shape[1]
    key_BHDT = key_BGTD.float().repeat_interleave(heads // groups, dim=1).transpose(2, 3)
    scores_BHTT = query_BHTD.float() @ key_BHDT * width**-0.5
    future = torch.ones(tokens, tokens, dtype=torch.bool, device=query_BHTD.device).triu(1)
    return scores_BHTT.masked_fill(future, float("-inf")).softmax(dim=-1)[..., 0]


def _table(cells: Cells, task: Backcopy) -> Table:
    rows = tuple(
        (
            label_of(name, seeds),
            *(seed_mean(seeds, partial(last, curve=curve)) for curve in ("accuracy", "loss", *_SEEN)),
        )
        for name, seeds in cells.items()
    )
    return Table(
        title="At the end of training",
        columns=("attention", "copies right", "training loss", *_SEEN.values()),
        rows=rows,
        note=f"The chain itself has {task.entropy:.3f} nats a token that nobody can predict.",
    )


def half_way(curve: Curve) -> float:
    """The first step at which a curve has gone half of its way from its first value to its extreme."""
    if not curve:
        return float("inf")
    begin = curve[0][1]
    extreme = max((value for _, value in curve), key=lambda value: abs(value - begin))
    if extreme == begin:
        return float("inf")
    return float(next((step for step, value in curve if (value - begin) / (extreme - begin) >= 0.5), float("inf")))


def _half_way(cell: Trained, curve: str) -> str:
    return DIVERGED if cell.get("stopped") else f"{half_way(cell[curve]):.0f}"


def _order(cells: Cells) -> Table:
    rows = tuple(
        (name, *(" / ".join(_half_way(cell, curve) for cell in seeds) for curve in ("accuracy", *_SEEN)))
        for name, seeds in cells.items()
    )
    return Table(
        title="Steps until half of the whole change, by seed",
        columns=("attention", "copies right", *_SEEN.values()),
        rows=rows,
        note="Which comes first, to within the interval between two evaluations; no cause follows from an order.",
    )


def _notes(cells: Cells) -> list[str]:
    """What each kind of attention changes against vanilla, paired over seeds."""
    notes = against(cells, "vanilla", _SEEN)
    if grown := [last(cell, "peak") for cell in ended(cells["vanilla"])]:
        notes.append(
            f"The residual norm of BOS ends at {min(grown):.3g} to {max(grown):.3g} times the median token's in "
            "vanilla attention. In the paper three layers reach some hundred after 10,000 steps."
        )
    return notes

"""A model that does grow outliers, with each attention that promises fewer (arXiv 2306.12929, 2402.17762, 2411.19574).

The vehicle is the preset "vehicle-span": a byte model that must copy repeated spans, with tiny batches and strong
weight decay. Vanilla attention grows a sink, one loud channel on BOS in every layer, and a loss where activations are
rounded to six bits with the residual stream. Whether it did is said first, by seed; where most seeds did not, nothing
is concluded.

Eight bits of what enters the matrices separate nothing at this size, because the norm before them hides the loud
channel; so the residual stream is rounded too, and to fewer bits. The control leaves BOS out of the rounding: what it
costs is not the outlier's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from studfinder.errors import unknown
from studfinder.experiments.w8a8 import WAYS, stream_losses, window_losses
from studfinder.models import load
from studfinder.quantizers import ActivationScheme, quantized
from studfinder.records import Interval, Table
from studfinder.records.config import option
from studfinder.records.result import Cell
from studfinder.studies.experiment import Bench, Experiment, Outcome
from studfinder.studies.seeds import Cells, about, against, curves, ends_table, last, seed_change
from studfinder.studies.trained import ModelKind, TrainedConfig, every_cell
from studfinder.studies.vehicle import LOGGED, TELLING, growth, passed, vehicle_source, vehicle_verdict
from studfinder.training import TextSource, preset

_VEHICLE = preset("vehicle-span")
_INPUTS = "dynamic per tensor"
_ACTIVATIONS = {
    8: ActivationScheme(scope="tensor"),
    6: ActivationScheme(element="int6", scope="tensor"),
    5: ActivationScheme(element="int5", scope="tensor"),
}
_SCORES = {"test": "test loss", "outliers/inf_norm": "inf norm", **TELLING, "outliers/kurtosis": "kurtosis of a token"}
_BITS = {
    "gap/W8A8": "W8A8, inputs alone",
    "gap/W8A8 + stream": "W8A8",
    "damage": "W8A6",
    "gap/W8A5 + stream": "W8A5",
    "gap/W8A8 but BOS": "W8A8, BOS exact",
    "gap/W8A6 but BOS": "W8A6, BOS exact",
    "gap/W8A5 but BOS": "W8A5, BOS exact",
}
_JUDGED = {name: {**_SCORES, **_BITS}[name] for name in ("test", "ratio", "kurtosis", "damage", "gap/W8A5 + stream")}


def arms(length: int) -> dict[str, list[str]]:
    """Kinds of attention beside vanilla; clipped softmax's gamma follows from the training length, as in the paper."""
    linear = "gated:kind=linear,pi_init=0.25"
    return {
        "linear gate": [linear],
        "explicit k' and v'": ["attention_bias"],
        "clipped softmax": [f"clipped_softmax:alpha=4,length={length}"],
        "KV shift + gate": ["kv_shift", linear],
        "sink logit": ["sink_logit"],
        "softmax-one": ["softmax_one"],
        "KV shift": ["kv_shift"],
        "elementwise gate": ["gated:kind=elementwise"],
        "MLP gate": ["gated:kind=mlp,pi_init=0.25"],
        "all-heads gate": ["gated:kind=all-heads,pi_init=0.25"],
        "clipped softmax (12)": [f"clipped_softmax:alpha=12,length={length}"],
    }


@dataclass(frozen=True, kw_only=True)
class VehicleConfig(TrainedConfig):
    """And which arms, for how long."""

    arms: Sequence[str] = option(tuple(arms(1)), help="Kinds of attention beside vanilla, in the order of training.")
    minutes: float | None = option(
        None, above=0, help="No model is begun after so many minutes of training.", otherwise="all are trained"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.arms:
            if name not in arms(1):
                raise unknown("there is no arm", name, arms(1))


EXPERIMENT = Experiment(
    trains=True,
    name="outlier-free/vehicle",
    paper="2306.12929",
    shows="table 2 (ours: the vehicle)",
    summary="On a model that does grow outliers: which attention prevents them, and what do few bits cost then?",
    needs="two to four minutes a model on one core, 60 models (no model is loaded: small ones are trained)",
    presets={
        "cpu": VehicleConfig(
            length=_VEHICLE.length,
            heads=_VEHICLE.shape.heads,
            steps=_VEHICLE.recipe.steps,
            batch=_VEHICLE.recipe.batch,
            lr=_VEHICLE.recipe.lr,
            warmup=_VEHICLE.recipe.warmup,
            schedule=_VEHICLE.recipe.schedule,
            look_every=200,
            seeds=5,
        )
    },
)


def run(bench: Bench) -> Outcome:
    """Every arm at every seed, one arm after the other, vanilla first."""
    own = bench.config
    assert _VEHICLE.threshold is not None
    source = vehicle_source(_VEHICLE, own.recipe(), own.length)
    shape, watch = replace(_VEHICLE.shape, heads=own.heads), growth(source)
    finish = partial(in_few_bits, own.test, source)
    cells: Cells = {}
    for name, attention in {"vanilla": [], **{name: arms(own.length)[name] for name in own.arms}}.items():
        rest = {
            "minutes": None if own.minutes is None else own.minutes - _minutes(cells),
            "weight_decay": _VEHICLE.recipe.weight_decay,
        }
        kind = {name: ModelKind(shape, attention, [watch])}
        found = every_cell(bench, source, kind, watch=True, logged=LOGGED, finish=finish, **rest)
        cells |= found if found[name] else {}
    lacks = {name: own.seeds - len(cells.get(name, ())) for name in ("vanilla", *own.arms)}
    left = [f"{name} ({seeds} of {own.seeds} seeds)" for name, seeds in lacks.items() if seeds]
    said, by_seed = vehicle_verdict(cells["vanilla"], _VEHICLE.threshold, own.seed)
    compared = against(cells, "vanilla", _JUDGED) if passed(cells["vanilla"], _VEHICLE.threshold) else []
    notes = [said, *compared, *([f"Not trained, for want of time: {', '.join(left)}."] if left else [])]
    tables = [
        by_seed,
        ends_table(f"After {own.steps} steps", cells, _SCORES, note="Means over seeds; 95 % intervals."),
        ends_table("What rounding costs, nats a token", cells, _BITS, note=_ROUNDED),
        *([_differences(cells)] if len(cells) > 1 else []),
    ]
    charts = [
        curves(cells, {"test": "test loss, nats a token"}, name="loss"),
        curves(cells, TELLING, name="growth", log=("ratio", "kurtosis")),
    ]
    return Outcome(tables, [*notes, *about(cells)], charts, cells)


_ROUNDED = (
    "Matrices of the blocks in eight bits, one symmetric scale each. What enters them, and (but for the first column) "
    "the residual stream where blocks begin and end, in eight, six or five bits, with one symmetric dynamic range a "
    "window. What a variant adds to attention is not rounded. BOS exact: it stays as it is and sets no range."
)


def in_few_bits(test: int, source: TextSource, model: Any) -> dict[str, Any]:
    """What rounding costs a trained model on the test windows, nats a token; each a curve of one point."""
    lm = load(model)
    windows = [source.row("test", 0, index)["input_ids"].tolist() for index in range(min(test, source.test_rows))]
    full = np.mean(window_losses(lm, windows))
    with quantized(lm, WAYS[_INPUTS]):
        gaps = {"W8A8": window_losses(lm, windows)}
    for bits, config in _ACTIVATIONS.items():
        gaps[f"W8A{bits} + stream"] = stream_losses(lm, windows, config)
        gaps[f"W8A{bits} but BOS"] = stream_losses(lm, windows, config, first=1)
    costs = {name: [[0, float(np.mean(losses) - full)]] for name, losses in gaps.items()}
    return {"full": [[0, float(full)]], "damage": costs.pop("W8A6 + stream"), "gap": costs}


def _minutes(cells: Cells) -> float:
    return sum(cell["seconds"] for seeds in cells.values() for cell in seeds) / 60


def _differences(cells: Cells) -> Table:
    """Each arm minus vanilla, paired over seeds, and the smallest difference that these seeds could have shown."""
    columns = [label for label in _JUDGED.values() for label in (label, f"{label}: smallest shown")]
    rows: list[tuple[Cell, ...]] = []
    for name, seeds in cells.items():
        if name != "vanilla":
            found = [seed_change(seeds, cells["vanilla"], partial(last, curve=curve)) for curve in _JUDGED]
            rows.append((name, *(part for one in found for part in (one, _half(one)))))
    note = (
        "Paired over seeds, Student's t, 95 %. The smallest difference that could have been shown is half the "
        "interval: a smaller one, with seeds that scatter as these did, would not be told from none."
    )
    return Table(title="Minus vanilla", columns=("attention", *columns), rows=tuple(rows), note=note)


def _half(change: Interval | str | None) -> float | None:
    return (change.high - change.low) / 2 if isinstance(change, Interval) else None

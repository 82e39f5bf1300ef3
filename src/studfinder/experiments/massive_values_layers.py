"""How early massive values appear (Jin et al. 2025, arXiv 2502.01563, "from the first layers", appendix).

What it asks: in which layers do Q and K hold massive values, from which layer on, and does RoPE put them there? How:
M[h,d] over twelve prompts, entries above lambda times their head's mean, layer by layer, for Q, K and V and for Q and K
before RoPE. What to look at: the first layer whose count exceeds what heads of random direction would give, and the
difference before and after RoPE.

The paper shows heat maps of layers 1, 2 and 10 (counted from 1), before and after RoPE, and counts nothing. RoPE turns
each pair of dims and keeps the pair's norm, so that the larger of the two changes by a factor of sqrt(2) at most:
massive values must be there before it, and that the counts hardly change is no evidence about why they arose.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.experiments.norms import (
    NAMES,
    LambdaConfig,
    Maps,
    Statistic,
    chance_above,
    counts,
    ratios,
    read_maps,
    resampled,
    total,
)
from studfinder.models import LM
from studfinder.records import Chart, Comparison, Interval, Plot, Series, Table, point, to_plain

EXPERIMENT = Experiment(
    name="massive-values/layers",
    paper="2502.01563",
    shows="appendix, layers 1, 2 and 10",
    summary="From which layer on do Q and K hold massive values, and does RoPE put them there?",
    needs="about 30 seconds with smollm2 on two cores",
    presets={"cpu": LambdaConfig()},
)


def run(bench: Bench, lm: LM) -> Outcome:
    """Counts by layer, before and after RoPE."""
    seen = bench.once("layers", partial(_read, bench, lm))
    return Outcome([_totals_table(seen), _layers_table(seen)], _notes(seen), [_chart(seen)], seen)


def _read(bench: Bench, lm: LM) -> dict[str, Any]:
    lam = bench.config.lam
    maps = read_maps(lm, bench.config.limit, bench.progress)
    statistics: dict[str, Statistic] = {tensor: partial(total, tensor, lam) for tensor in maps.tensors}
    turned = [
        tensor for tensor in ("query", "key") if maps.layers.get(f"{tensor}.pre_rope", 0) == maps.layers.get(tensor)
    ]
    for tensor in turned:
        after, before = (partial(total, name, lam) for name in (tensor, f"{tensor}.pre_rope"))
        statistics[f"{tensor} by RoPE"] = lambda norms, after=after, before=before: after(norms) - before(norms)
    found = resampled(maps, statistics)
    return {
        "lambda": lam,
        "prompts": len(maps.squares[maps.tensors[0]]),
        "tensors": {
            tensor: {**_tensor(maps, tensor, lam), "total": to_plain(found[tensor])} for tensor in maps.tensors
        },
        "rope": {tensor: to_plain(found[f"{tensor} by RoPE"]) for tensor in turned},
    }


def _tensor(maps: Maps, tensor: str, lam: float) -> dict[str, Any]:
    norm_LHD = maps.norm_LHD(tensor)
    heads, dims = norm_LHD.shape[1:]
    return {
        "layers": list(maps.layers[tensor]),
        "heads": heads,
        "massive": counts(norm_LHD, lam).tolist(),
        "largest": ratios(norm_LHD).max(axis=(1, 2)).tolist(),
        "chance": chance_above(dims, lam) * heads * dims,
    }


def first_layer(of: dict[str, Any]) -> int | None:
    """The first layer with more massive entries than heads of random direction would give; None if there is none."""
    hits = [layer for layer, n in zip(of["layers"], of["massive"], strict=True) if n > max(0.5, of["chance"])]
    return hits[0] if hits else None


def _totals_table(seen: dict[str, Any]) -> Table:
    rows = []
    for tensor, of in seen["tensors"].items():
        change = seen["rope"].get(tensor)
        rows.append(
            (
                NAMES[tensor],
                Interval(**of["total"]),
                of["chance"] * len(of["layers"]),
                first_layer(of),
                sum(n > 0 for n in of["massive"]),
                len(of["layers"]),
                None if change is None else Comparison(kind="difference", interval=Interval(**change)),
            )
        )
    return Table(
        title=f"massive values (lambda {seen['lambda']:g}) over all layers",
        columns=("tensor", "massive", "by chance", "first layer", "layers with any", "layers", "after - before RoPE"),
        rows=tuple(rows),
        note="Intervals: prompts resampled. By chance: if every head held one vector of random direction. First layer: "
        'the first with more than that; layers count from 0. The paper says "from layer 1", counted from 1.',
    )


def _layers_table(seen: dict[str, Any]) -> Table:
    layers = sorted({layer for of in seen["tensors"].values() for layer in of["layers"]})

    def at(of: dict[str, Any], layer: int, what: str) -> float | int | None:
        return of[what][of["layers"].index(layer)] if layer in of["layers"] else None

    columns = ["layer"]
    for tensor in seen["tensors"]:
        columns += [NAMES[tensor], f"{NAMES[tensor]}: largest"]
    rows = [
        (layer, *(at(of, layer, what) for of in seen["tensors"].values() for what in ("massive", "largest")))
        for layer in layers
    ]
    return Table(
        title="by layer",
        columns=tuple(columns),
        rows=tuple(rows),
        note="Massive entries, and the largest M over the mean of its head.",
    )


def _notes(seen: dict[str, Any]) -> list[str]:
    firsts = []
    for tensor, of in seen["tensors"].items():
        if tensor.endswith("pre_rope") and tensor.split(".")[0] in seen["tensors"]:
            continue
        first = first_layer(of)
        firsts.append(f"{NAMES[tensor]} " + ("never" if first is None else f"from layer {first}"))
    notes = [f"more massive values than by chance: {', '.join(firsts)} (layers count from 0)."]
    for tensor, change in seen["rope"].items():
        by = Comparison(kind="difference", interval=Interval(**change))
        before = seen["tensors"][f"{tensor}.pre_rope"]["total"]["value"]
        says = "RoPE changes that count beyond what prompts vary" if by.changed else "no clear change by RoPE"
        notes.append(
            f"{NAMES[tensor]} holds {before:.0f} massive values before RoPE and {before + by.interval.value:.0f} after "
            f"({by:+.0f}): {says}."
        )
    return notes


def _chart(seen: dict[str, Any]) -> Chart:
    """Massive entries a head, and the largest ratio, by layer; dotted before RoPE."""

    def series(what: str) -> tuple[Series, ...]:
        return tuple(
            Series(
                name=NAMES[tensor],
                x=tuple(of["layers"]),
                points=tuple(point(n / of["heads"] if what == "massive" else n) for n in of[what]),
                dotted=tensor.endswith("pre_rope"),
                like=NAMES[tensor.removesuffix(".pre_rope")],
            )
            for tensor, of in seen["tensors"].items()
        )

    lam = seen["lambda"]
    above = Plot(kind="lines", series=series("massive"), x="layer", title=f"entries a head above {lam:g} x its mean")
    most = Plot(kind="lines", series=series("largest"), x="layer", title="largest M / its head's mean", none=lam)
    return Chart(name="layers", plots=(above, most))

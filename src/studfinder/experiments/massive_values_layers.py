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

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.experiments.norms import (
    LETTERS,
    Maps,
    Statistic,
    chance_above,
    counts,
    norm_ratios,
    read_maps,
    resampled,
)
from studfinder.models import LM
from studfinder.records import Comparison, Interval, Result, Table, to_plain
from studfinder.report.style import BLUE, GREEN, GREY, MUTED, VERMILLION, new_figure

EXPERIMENT = Experiment(
    name="massive-values/layers",
    paper="2502.01563",
    shows="appendix, layers 1, 2 and 10",
    summary="From which layer on do Q and K hold massive values, and does RoPE put them there?",
    needs="about 30 seconds with smollm2 on two cores",
    presets={"cpu": {"limit": 12, "lam": 5.0}},
)
_COLOURS = {"query": VERMILLION, "key": BLUE, "value": GREY, "query.pre_rope": VERMILLION, "key.pre_rope": BLUE}


def run(bench: Bench) -> Outcome:
    """Counts and the largest ratio by layer; totals with intervals."""
    tables, notes, data = [], [], {}
    for name in bench.models:
        with bench.model(name) as lm:
            seen = bench.once("layers", partial(_read, bench, lm))
        data[name] = seen
        tables += [_totals_table(name, seen), _layers_table(name, seen)]
        notes += _notes(name, seen)
    return Outcome(tables, notes, data)


def _read(bench: Bench, lm: LM) -> dict[str, Any]:
    lam = float(bench.settings["lam"])
    maps = read_maps(lm, bench.settings["limit"], bench.progress)

    def total(norms: Mapping[str, np.ndarray], tensor: str) -> np.ndarray:
        return np.asarray(counts(norms[tensor], lam).sum(axis=-1))

    statistics: dict[str, Statistic] = {tensor: partial(total, tensor=tensor) for tensor in maps.tensors}
    turned = [
        tensor for tensor in ("query", "key") if maps.layers.get(f"{tensor}.pre_rope", 0) == maps.layers.get(tensor)
    ]
    for tensor in turned:
        statistics[f"{tensor} by RoPE"] = partial(_by_rope, total, tensor)
    found = resampled(maps, statistics)
    return {
        "lambda": lam,
        "prompts": len(maps.squares[maps.tensors[0]]),
        "tensors": {
            tensor: {**_tensor(maps, tensor, lam), "total": to_plain(found[tensor])} for tensor in maps.tensors
        },
        "rope": {tensor: to_plain(found[f"{tensor} by RoPE"]) for tensor in turned},
    }


def _by_rope(total: Callable[..., np.ndarray], tensor: str, norms: Mapping[str, np.ndarray]) -> np.ndarray:
    return total(norms, tensor) - total(norms, f"{tensor}.pre_rope")


def _tensor(maps: Maps, tensor: str, lam: float) -> dict[str, Any]:
    norm_LHD = maps.norm_LHD(tensor)
    heads, dims = norm_LHD.shape[1:]
    return {
        "layers": list(maps.layers[tensor]),
        "heads": heads,
        "massive": counts(norm_LHD, lam).tolist(),
        "largest": norm_ratios(norm_LHD).max(axis=(1, 2)).tolist(),
        "chance": chance_above(dims, lam) * heads * dims,
    }


def first_layer(of: dict[str, Any]) -> int | None:
    """The first layer with more massive entries than heads of random direction would give; None if there is none."""
    hits = [layer for layer, n in zip(of["layers"], of["massive"], strict=True) if n > max(0.5, of["chance"])]
    return hits[0] if hits else None


def _totals_table(name: str, seen: dict[str, Any]) -> Table:
    rows = []
    for tensor, of in seen["tensors"].items():
        change = seen["rope"].get(tensor)
        rows.append(
            (
                LETTERS[tensor],
                Interval(**of["total"]),
                of["chance"] * len(of["layers"]),
                first_layer(of),
                sum(n > 0 for n in of["massive"]),
                len(of["layers"]),
                None if change is None else Comparison(kind="difference", interval=Interval(**change)),
            )
        )
    return Table(
        title=f"{name}: massive values (lambda {seen['lambda']:g}) over all layers",
        columns=("tensor", "massive", "by chance", "first layer", "layers with any", "layers", "after - before RoPE"),
        rows=tuple(rows),
        note="Intervals: prompts resampled. By chance: if every head held one vector of random direction. First layer: "
        'the first with more than that; layers count from 0. The paper says "from layer 1", counted from 1.',
    )


def _layers_table(name: str, seen: dict[str, Any]) -> Table:
    layers = sorted({layer for of in seen["tensors"].values() for layer in of["layers"]})

    def at(of: dict[str, Any], layer: int, what: str) -> float | int | None:
        return of[what][of["layers"].index(layer)] if layer in of["layers"] else None

    columns = ["layer"]
    for tensor in seen["tensors"]:
        columns += [LETTERS[tensor], f"{LETTERS[tensor]}: largest"]
    rows = [
        (layer, *(at(of, layer, what) for of in seen["tensors"].values() for what in ("massive", "largest")))
        for layer in layers
    ]
    return Table(
        title=f"{name}: by layer",
        columns=tuple(columns),
        rows=tuple(rows),
        note="Massive entries, and the largest M over the mean of its head.",
    )


def _notes(name: str, seen: dict[str, Any]) -> list[str]:
    firsts = []
    for tensor, of in seen["tensors"].items():
        if tensor.endswith("pre_rope") and tensor.split(".")[0] in seen["tensors"]:
            continue
        first = first_layer(of)
        firsts.append(f"{LETTERS[tensor]} " + ("never" if first is None else f"from layer {first}"))
    notes = [f"{name}: more massive values than by chance: {', '.join(firsts)} (layers count from 0)."]
    for tensor, change in seen["rope"].items():
        value, low, high = change["value"], change["low"], change["high"]
        before = seen["tensors"][f"{tensor}.pre_rope"]["total"]["value"]
        says = "RoPE changes that count beyond what prompts vary" if low > 0 or high < 0 else "no clear change by RoPE"
        notes.append(
            f"{name}: {LETTERS[tensor]} holds {before:.0f} massive values before RoPE and {before + value:.0f} after "
            f"({value:+.0f} [{low:+.0f}, {high:+.0f}]): {says}."
        )
    return notes


# --- figures --------------------------------------------------------------------------------------------------------


def draw(result: Result, width: float) -> dict[str, Figure]:
    """Massive entries a head, and the largest ratio, by layer; dotted before RoPE."""
    figures = {}
    for place, (name, seen) in enumerate(result.data.items()):
        wide = width > 600
        figure = new_figure(width, 340 if wide else 620)
        panels = figure.subplots(1, 2) if wide else figure.subplots(2, 1)
        for axes, what in zip(panels, ("massive", "largest"), strict=True):
            for tensor, of in seen["tensors"].items():
                before = tensor.endswith("pre_rope")
                shown = [n / of["heads"] for n in of[what]] if what == "massive" else of[what]
                axes.plot(
                    of["layers"],
                    shown,
                    color=_COLOURS[tensor],
                    linestyle=":" if before else "-",
                    linewidth=1.6 if before else 2,
                    label=LETTERS[tensor],
                )
            axes.set_ylim(0)
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
            axes.set_xlabel("layer")
            axes.grid(axis="y")
        panels[0].set_title(f"entries a head above {seen['lambda']:g} x its mean")
        panels[1].set_title("largest M / its head's mean")
        panels[1].axhline(seen["lambda"], color=GREEN, linewidth=1)
        panels[1].annotate(
            f"lambda = {seen['lambda']:g}",
            (0.99, seen["lambda"]),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            color=MUTED,
            fontsize=11,
        )
        figure.legend(
            *panels[0].get_legend_handles_labels(),
            loc="outside upper left",
            ncols=5 if wide else 2,
            title=name,
            alignment="left",
        )
        figures["layers" if not place else f"layers-{place + 1}"] = figure
    return figures

"""Heat maps of Q, K and V (Jin et al. 2025, arXiv 2502.01563, figure 2 and its appendix; section 3).

What it asks: do a few dims of Q and K carry far more than the others, in the same place in every head, and V not?
How: M[h,d] = sqrt(sum over tokens of q[h,d]^2) over twelve prompts, for an early, a middle and a late layer (or those
named); an entry is massive above lambda times the mean of its head (their text; a replication takes the mean of the
whole layer, so both are counted). What to look at: bright rows that run through all heads of Q and K; and whether the
counts exceed what heads of random direction would give.

The paper's figures come from one prompt of one layer, count their layers from 1, and their notebooks cut the dims in
half (64 of 128 are drawn). Here every dim is drawn, and K also before RoPE. The paper names no null. Ours are two:
"by chance" is a head that holds one vector of random direction; agreement between heads is held against shuffled dims.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from studfinder.detectors.massive_values import agreement, concentration, concentration_null
from studfinder.errors import StudfinderError
from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.experiments.norms import (
    LETTERS,
    Maps,
    chance_above,
    counts,
    five_digits,
    norm_ratios,
    read_maps,
    resampled,
)
from studfinder.models import LM
from studfinder.records import Interval, Result, Table, to_plain
from studfinder.report.style import RAMP, RULE, new_figure

EXPERIMENT = Experiment(
    name="massive-values/map",
    paper="2502.01563",
    shows="figure 2",
    summary="Do a few dims of Q and K, the same in every head, carry far more than the others?",
    needs="about 30 seconds with smollm2 on two cores",
    presets={"cpu": {"limit": 12, "layers": [], "lambdas": [3, 5, 10]}},
)
_DRAWN = ("query", "key", "key.pre_rope", "value")
_LAMBDA = 5.0


def run(bench: Bench) -> Outcome:
    """Counts over all layers, and the maps of the chosen ones."""
    tables, notes, data = [], [], {}
    for name in bench.models:
        with bench.model(name) as lm:
            seen = bench.once("maps", partial(_read, bench, lm))
        data[name] = seen
        tables += [_counts_table(name, seen), _layers_table(name, seen)]
        notes.append(_note(name, seen))
    return Outcome(tables, notes, data)


def _read(bench: Bench, lm: LM) -> dict[str, Any]:
    maps = read_maps(lm, bench.settings["limit"], bench.progress)
    lams = [float(lam) for lam in bench.settings["lambdas"]]
    chosen = _chosen(maps, [int(layer) for layer in bench.settings["layers"]])
    return {
        "tokens": maps.tokens,
        "prompts": len(maps.squares[maps.tensors[0]]),
        "counts": _counts(maps, lams),
        "layers": {
            str(layer): {tensor: _layer(maps, tensor, layer) for tensor in maps.tensors if layer in maps.layers[tensor]}
            for layer in chosen
        },
    }


def _chosen(maps: Maps, asked: list[int]) -> list[int]:
    """The named layers, or an early one, and those after a third and two thirds of the depth."""
    present = maps.layers[maps.tensors[0]]
    if not asked:
        return sorted({present[min(1, len(present) - 1)], present[len(present) // 3], present[2 * len(present) // 3]})
    wrong = [layer for layer in asked if layer not in present]
    if wrong:
        raise StudfinderError(
            f"layers={','.join(map(str, wrong))}", expected=f"layers with attention, {present[0]} to {present[-1]}"
        )
    return asked


def _counts(maps: Maps, lams: list[float]) -> dict[str, Any]:
    """By tensor and lambda: entries above it over all layers, against the mean of their head and of their layer."""
    found = resampled(
        maps,
        {f"{tensor} {lam}": partial(_total, tensor, lam) for tensor in maps.tensors for lam in lams},
    )
    return {
        tensor: {
            "entries": maps.norm_LHD(tensor).size,
            "by_lambda": [
                {
                    "lambda": lam,
                    "head": to_plain(found[f"{tensor} {lam}"]),
                    "layer": int(counts(maps.norm_LHD(tensor), lam, "layer").sum()),
                    "chance": chance_above(maps.squares[tensor].shape[-1], lam) * maps.norm_LHD(tensor).size,
                }
                for lam in lams
            ],
            "largest": float(norm_ratios(maps.norm_LHD(tensor)).max()),
        }
        for tensor in maps.tensors
    }


def _total(tensor: str, lam: float, norms: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.asarray(counts(norms[tensor], lam).sum(axis=-1))


def _layer(maps: Maps, tensor: str, layer: int) -> dict[str, Any]:
    norm_HD = maps.norm_LHD(tensor)[maps.layers[tensor].index(layer)]
    agreed = agreement(torch.from_numpy(norm_HD))
    return {
        "norm": five_digits(norm_HD),
        "largest": float(norm_ratios(norm_HD[None]).max()),
        "massive": int(counts(norm_HD[None], _LAMBDA).sum()),
        "concentration": float(concentration(torch.from_numpy(norm_HD)).median()),
        "concentration_null": concentration_null(norm_HD.shape[-1]),
        "overlap": None if agreed is None else agreed.overlap,
        "p": None if agreed is None else agreed.p,
    }


def _counts_table(name: str, seen: dict[str, Any]) -> Table:
    rows = tuple(
        (
            LETTERS[tensor],
            of["lambda"],
            Interval(**of["head"]),
            of["layer"],
            of["chance"],
            counted["entries"],
            counted["largest"],
        )
        for tensor, counted in seen["counts"].items()
        for of in counted["by_lambda"]
    )
    return Table(
        title=f"{name}: massive entries of all layers ({seen['prompts']} prompts, {seen['tokens']:,} tokens)",
        columns=(
            "tensor",
            "lambda",
            "above lambda x head mean",
            "above lambda x layer mean",
            "by chance",
            "entries in all",
            "largest M / head mean",
        ),
        rows=rows,
        note="Intervals: prompts resampled. By chance: if every head held one vector of random direction. The authors' "
        "own tensors, one layer and prompt of Llama-2-7B-chat (Q 32 x 128): 87 entries above 3, 48 above 5, 3 above "
        "10, and none of V above 5.",
    )


def _layers_table(name: str, seen: dict[str, Any]) -> Table:
    rows = tuple(
        (
            int(layer),
            LETTERS[tensor],
            of["massive"],
            of["largest"],
            of["concentration"],
            of["concentration_null"],
            of["overlap"],
            of["p"],
        )
        for layer, tensors in seen["layers"].items()
        for tensor, of in tensors.items()
    )
    return Table(
        title=f"{name}: the layers drawn",
        columns=(
            "layer",
            "tensor",
            f"massive (lambda {_LAMBDA:g})",
            "largest M / head mean",
            "concentration",
            "by chance below",
            "overlap of heads' top dims",
            "p (shuffled dims)",
        ),
        rows=rows,
        note="Concentration: 0 is energy spread evenly over a head's dims, 1 is all in one (median over heads); by "
        "chance below: the 99th percentile for a vector of random direction. Overlap: of the D/32 largest dims, mean "
        "over pairs of heads. Layers count from 0; the paper's count from 1.",
    )


def _note(name: str, seen: dict[str, Any]) -> str:
    def total(tensor: str) -> tuple[float, float, float]:
        nearest = min(seen["counts"][tensor]["by_lambda"], key=lambda of: abs(of["lambda"] - _LAMBDA))
        return nearest["head"]["value"], nearest["chance"], nearest["lambda"]

    parts = []
    for tensor in [tensor for tensor in ("query", "key", "value") if tensor in seen["counts"]]:
        found, chance, lam = total(tensor)
        parts.append(f"{LETTERS[tensor]} {found:.0f} (by chance {chance:.1f})")
    agreeing = [
        f"{LETTERS[tensor]} in layer {layer}"
        for layer, tensors in seen["layers"].items()
        for tensor, of in tensors.items()
        if tensor != "value" and of["p"] is not None and of["p"] < 0.05
    ]
    where = f"heads share their largest dims (p < 0.05) for {', '.join(agreeing)}" if agreeing else ""
    return (
        f"{name}: entries above {lam:g} x their head's mean: {', '.join(parts)}; "
        + (where or "in none of the layers drawn do heads share their largest dims beyond chance (p < 0.05)")
        + "."
    )


# --- figures --------------------------------------------------------------------------------------------------------


def draw(result: Result, width: float) -> dict[str, Figure]:
    """A row of maps a layer: heads across, all dims down, brightness M over the mean of its head."""
    figures = {}
    for place, (name, seen) in enumerate(result.data.items()):
        suffix = f"-{place + 1}" if place else ""
        figures[f"map{suffix}"] = _figure(name, seen, width)
    return figures


def _figure(name: str, seen: dict[str, Any], width: float) -> Figure:
    wide = width > 600
    tensors = [tensor for tensor in _DRAWN if tensor in seen["counts"]]
    columns = len(tensors) if wide else min(2, len(tensors))
    panels = [(layer, tensor) for layer in seen["layers"] for tensor in tensors]
    lines = -(-len(panels) // columns)
    figure = new_figure(width, 110 + lines * (290 if wide else 250))
    figure.suptitle(name, x=0.01, ha="left", fontsize=12.5)
    largest = max(of["largest"] for tensors_ in seen["layers"].values() for of in tensors_.values())
    colours = TwoSlopeNorm(vmin=0, vcenter=_LAMBDA, vmax=max(2 * _LAMBDA, largest))
    axes_of = list(figure.subplots(lines, columns, squeeze=False).flat)
    image = None
    for axes, (layer, tensor) in zip(axes_of, panels, strict=False):
        of = seen["layers"][layer].get(tensor)
        if of is None:
            axes.set_axis_off()
            continue
        ratio_HD = norm_ratios(np.array(of["norm"])[None])[0]
        image = axes.imshow(ratio_HD.T, cmap=RAMP, norm=colours, aspect="auto", interpolation="nearest")
        axes.set_title(f"{LETTERS[tensor]}, layer {layer}", fontsize=12 if wide else 11)
        heads = len(ratio_HD)
        axes.set_xticks(range(0, heads, max(1, -(-heads // 9))))
        axes.spines[:].set_visible(False)
    for axes in axes_of[len(panels) :]:
        axes.set_axis_off()
    for line in range(lines):
        axes_of[line * columns].set_ylabel("dim of the head")
    for axes in axes_of[(lines - 1) * columns :]:
        axes.set_xlabel("head")
    assert image is not None
    bar = figure.colorbar(
        image, ax=axes_of, orientation="horizontal", fraction=0.02, pad=0.01, aspect=40 if wide else 20
    )
    top = colours.vmax or 2 * _LAMBDA
    bar.set_ticks([0, _LAMBDA, top], labels=["0", f"{_LAMBDA:g}", f"{top:.0f}"])
    bar.set_label(f"M / its head's mean; massive above {_LAMBDA:g}")
    bar.outline.set_edgecolor(RULE)
    return figure

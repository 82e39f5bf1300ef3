"""Heat maps of Q, K and V (Jin et al. 2025, arXiv 2502.01563, figure 2 and its appendix; section 3).

What it asks: do a few dims of Q and K carry far more than the others, in the same place in every head, and V not?
How: M[h,d] = sqrt(sum over tokens of q[h,d]^2) over twelve prompts, for an early, a middle and a late layer (or those
named); an entry is massive above lambda times the mean of its head (their text; a replication takes the mean of the
whole layer, so both are counted). What to look at: bright rows that run through all heads of Q and K; and whether the
counts exceed what heads of random direction would give.

The paper's figures come from one prompt of one layer, count their layers from 1, and their notebooks cut the dims in
half (64 of 128 are drawn). Here every dim is drawn, and K also before RoPE. The paper names no null. Ours are two:
"by chance" is a head that holds one vector of random direction, and a lambda that fewer than one in a hundred such
heads would exceed stands beside the paper's 5; agreement between heads, in all layers together, is held against dims
shuffled within their rotary band.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from studfinder.detectors.massive_values import concentration, concentration_null
from studfinder.errors import StudfinderError
from studfinder.experiments.massive_heads import (
    QUERY_KEY,
    SAME_DIMS,
    VALUE,
    heads_claims,
    heads_note,
    heads_of,
    heads_table,
)
from studfinder.experiments.norms import (
    LETTERS,
    LambdaConfig,
    Maps,
    chance_above,
    counts,
    massive_total,
    norm_ratios,
    read_maps,
    resampled,
)
from studfinder.models import LM
from studfinder.records import Cell, Table
from studfinder.records.config import option
from studfinder.report.style import RAMP, RULE, new_figure
from studfinder.studies.experiment import Bench, Experiment, Outcome


@dataclass(frozen=True, kw_only=True)
class MapConfig(LambdaConfig):
    """Which layers are drawn, and what is counted in all of them."""

    layers: tuple[int, ...] = option((), help="Layers that are drawn; an early, a middle, a late one.", commas=True)
    lambdas: tuple[float, ...] = option((3, 5, 10), help="Lambdas that are counted besides.", commas=True)


EXPERIMENT = Experiment(
    name="massive-values/map",
    paper="2502.01563",
    shows="figure 2",
    summary="Do a few dims of Q and K, the same in every head, carry far more than the others?",
    needs="about 40 seconds with smollm2 on two cores",
    presets={"cpu": MapConfig()},
    claims=(QUERY_KEY, VALUE, SAME_DIMS),
)
_DRAWN = ("query", "key", "key.pre_rope", "value")
_PAPER = 5.0
"""The paper's lambda, as a replication has it."""


def run(bench: Bench, lm: LM) -> Outcome:
    """Counts over all layers, and the maps of the chosen ones."""
    return bench.outcome(partial(_outcome, bench, lm))


def _outcome(bench: Bench, lm: LM) -> Outcome:
    own, maps = bench.config, read_maps(lm, bench.config.limit, bench.progress)
    drawn: dict[str, dict[str, np.ndarray]] = {}
    for layer in _chosen(maps, own.layers):
        there = [tensor for tensor in maps.tensors if layer in maps.layers[tensor]]
        drawn[str(layer)] = {one: maps.norm_LHD(one)[maps.layers[one].index(layer)] for one in there}
    heads = {one: heads_of(lm, maps, one, own) for one in maps.tensors}
    tables = [heads_table(heads), _counts_table(maps, own.lambdas), _layers_table(drawn, own)]
    short = np.vectorize(lambda value: float(f"{value:.5g}"))  # enough to draw, a third of the bytes
    plain = {layer: {one: {"norm": short(norm).tolist()} for one, norm in of.items()} for layer, of in drawn.items()}
    return Outcome(
        tables,
        [heads_note(heads)],
        data={"layers": plain, "lambda": max(of.lam for of in heads.values())},
        claims=heads_claims(heads, len(maps.squares[maps.tensors[0]])),
    )


def _chosen(maps: Maps, asked: Sequence[int]) -> Sequence[int]:
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


def _counts_table(maps: Maps, lams: Sequence[float]) -> Table:
    found = resampled(maps, {f"{one} {lam}": partial(massive_total, one, lam) for one in maps.tensors for lam in lams})
    rows: list[tuple[Cell, ...]] = []
    for tensor in maps.tensors:
        norm_LHD = maps.norm_LHD(tensor)
        for lam in lams:
            chance = chance_above(norm_LHD.shape[-1], lam) * norm_LHD.size
            whole = int(counts(norm_LHD, lam, "layer").sum())
            most = float(norm_ratios(norm_LHD).max())
            rows.append((LETTERS[tensor], lam, found[f"{tensor} {lam}"], whole, chance, norm_LHD.size, most))
    prompts = len(maps.squares[maps.tensors[0]])
    return Table(
        title=f"massive entries of all layers ({prompts} prompts, {maps.tokens:,} tokens)",
        columns=(
            "tensor",
            "lambda",
            "above lambda x head mean",
            "above lambda x layer mean",
            "by chance",
            "entries in all",
            "largest M / head mean",
        ),
        rows=tuple(rows),
        note="Intervals: prompts resampled. By chance: if every head held one vector of random direction. The authors' "
        "own tensors, one layer and prompt of Llama-2-7B-chat (Q 32 x 128): 87 entries above 3, 48 above 5, 3 above "
        "10, and none of V above 5.",
    )


def _layers_table(drawn: Mapping[str, Mapping[str, np.ndarray]], own: MapConfig) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for layer, tensors in drawn.items():
        for tensor, norm_HD in tensors.items():
            lam, most = own.lambda_of(norm_HD.shape[-1]), float(norm_ratios(norm_HD).max())
            energy = float(concentration(torch.from_numpy(norm_HD)).median())
            found = (int(counts(norm_HD, lam)), most, energy, concentration_null(norm_HD.shape[-1]))
            rows.append((int(layer), LETTERS[tensor], *found))
    return Table(
        title="the layers drawn",
        columns=("layer", "tensor", "massive", "largest M / head mean", "concentration", "by chance below"),
        rows=tuple(rows),
        note="Concentration: 0 is energy spread evenly over a head's dims, 1 is all in one (median over heads); by "
        "chance below: the 99th percentile for a vector of random direction. Layers count from 0; the paper's count "
        "from 1.",
    )


def draw(name: str, seen: dict[str, Any], width: float) -> Figure:
    """A row of maps a layer: heads across, all dims down, brightness M over the mean of its head."""
    wide, lam = width > 600, seen.get("lambda", _PAPER)
    found = {
        (layer, tensor): norm_ratios(np.array(tensors[tensor]["norm"]))
        for layer, tensors in seen["layers"].items()
        for tensor in _DRAWN
        if tensor in tensors
    }
    tensors = [tensor for tensor in _DRAWN if any(tensor == one for _, one in found)]
    columns = len(tensors) if wide else min(2, len(tensors))
    panels = [(layer, tensor) for layer in seen["layers"] for tensor in tensors]
    lines = -(-len(panels) // columns)
    figure = new_figure(width, 110 + lines * (290 if wide else 250))
    figure.suptitle(name, x=0.01, ha="left", fontsize=12.5)
    top = max(2 * lam, *(float(ratio_HD.max()) for ratio_HD in found.values()))
    colours = TwoSlopeNorm(vmin=0, vcenter=lam, vmax=top)
    grid = figure.subplots(lines, columns, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place >= len(panels) or panels[place] not in found:
            axes.set_axis_off()
            continue
        (layer, tensor), ratio_HD = panels[place], found[panels[place]]
        axes.imshow(ratio_HD.T, cmap=RAMP, norm=colours, aspect="auto", interpolation="nearest")
        axes.set_title(f"{LETTERS[tensor]}, layer {layer}", fontsize=12 if wide else 11)
        axes.set_xticks(range(0, len(ratio_HD), max(1, -(-len(ratio_HD) // 9))))
        axes.spines[:].set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("dim of the head")
    for axes in grid[-1]:
        axes.set_xlabel("head")
    look: Any = {"orientation": "horizontal", "fraction": 0.02, "pad": 0.01, "aspect": 40 if wide else 20}
    bar = figure.colorbar(ScalarMappable(colours, RAMP), ax=grid, **look)
    bar.set_ticks([0, lam, top], labels=["0", f"{lam:.3g}", f"{top:.0f}"])
    bar.set_label(f"M / its head's mean; massive above {lam:.3g}")
    bar.outline.set_edgecolor(RULE)
    return figure

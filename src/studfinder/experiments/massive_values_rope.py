"""Where in the rotary spectrum massive values sit (Jin et al. 2025, arXiv 2502.01563, table 3 and section 6).

What it asks: do massive values sit in the slow dims of RoPE, and do models without RoPE have none? How: for each model
given, entries of Q and K above lambda times their head's mean, sorted by how many turns their rotary pair makes within
the training length. The boundary is the partial cycle (Jonasson 2025, arXiv 2503.01832): pairs that never complete one
turn over the distances that their layer sees, which are those of training, or of the window in a layer that has one.
What to look at: the share of massive entries in such dims against the share of all dims, which is what chance gives.

The paper says "low frequency", draws the slower half of the dims and counts nothing; it compares unrelated models with
and without RoPE, which is a correlation over models and no proof of a cause. The null here keeps what heads share: dims
are shuffled in the same way in all heads of a layer (Q and K apart). Intervals resample layers.
"""

from __future__ import annotations

import itertools
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.experiments.norms import LETTERS, Maps, chance_above, norm_ratios, read_maps
from studfinder.models import LM, Rotary, rotary_of, train_length
from studfinder.records import Interval, Result, Table, to_plain
from studfinder.report.style import BLUE, INK, RULE, VERMILLION, new_figure
from studfinder.stats import ratio_interval

EXPERIMENT = Experiment(
    name="massive-values/rope",
    paper="2502.01563",
    shows="table 3",
    summary="Do massive values sit in the dims that RoPE turns slowest, and only in models with RoPE?",
    needs="about 20 seconds a model of smollm2's size on two cores",
    presets={"cpu": {"limit": 12, "lam": 5.0, "train_length": 0}},
)
_SHUFFLES = 2000
_EDGES = (0.0, *(2.0**power for power in range(-8, 13)), float("inf"))
"""Turns: bins by factors of two; dims that are not rotated make none and fall into the first."""


def run(bench: Bench) -> Outcome:
    """Each model's share beyond the boundary, with base rate, null and interval."""
    data = {}
    for name in bench.models:
        with bench.model(name) as lm:
            data[name] = bench.once("bands", partial(_read, bench, lm))
    return Outcome([_shares(data), _bands(data)], [note for name in data for note in _notes(name, data[name])], data)


def _read(bench: Bench, lm: LM) -> dict[str, Any]:
    lam, given = float(bench.settings["lam"]), int(bench.settings["train_length"])
    length, source = train_length(lm, given or None)
    maps = read_maps(lm, bench.settings["limit"], bench.progress)
    seed = int(bench.settings["seed"])
    return {
        "lambda": lam,
        "stage": lm.anatomy.stage,
        "length": length,
        "length_from": source,
        "tensors": {
            tensor: _tensor(lm, maps, tensor, lam, length, seed) for tensor in maps.tensors if tensor != "value"
        },
    }


def _tensor(lm: LM, maps: Maps, tensor: str, lam: float, length: int, seed: int) -> dict[str, Any]:
    norm_LHD, layers = maps.norm_LHD(tensor), maps.layers[tensor]
    above_LHD = norm_ratios(norm_LHD) > lam
    full = [length] * len(layers)
    reach = [min(length, _window(lm, layer) or length) for layer in layers]
    found: dict[str, Any] = {
        "massive": int(above_LHD.sum()),
        "entries": norm_LHD.size,
        "chance": chance_above(norm_LHD.shape[-1], lam) * norm_LHD.size,
        "bands": {"distances seen": _against_rope(lm, layers, above_LHD, reach, seed)},
    }
    if reach != full:
        found["bands"]["training length"] = _against_rope(lm, layers, above_LHD, full, seed)
    return found


def _window(lm: LM, layer: int) -> int | None:
    """How far back a layer sees, where that is less than everything."""
    config = lm.model.config.get_text_config(decoder=True)
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if not window or not getattr(config, "use_sliding_window", True):
        return None
    return None if kinds and kinds[layer] != "sliding_attention" else int(window)


def _against_rope(
    lm: LM, layers: tuple[int, ...], above_LHD: np.ndarray, lengths: list[int], seed: int
) -> dict[str, Any] | None:
    """What share of the massive entries lies in dims that never turn; None without RoPE or without massive entries."""
    dims = above_LHD.shape[-1]
    turns = [_turns(rotary_of(lm, layer), length, dims) for layer, length in zip(layers, lengths, strict=True)]
    rotated = [place for place, of in enumerate(turns) if of is not None]
    votes_LD = above_LHD.sum(axis=1)[rotated].astype(float)
    if not votes_LD.sum():
        return None
    turns_LD = np.array([turns[place] for place in rotated])
    slow_LD = turns_LD < 1
    entries_L, slow_L = votes_LD.sum(axis=1), (votes_LD * slow_LD).sum(axis=1)
    holding = entries_L > 0  # a layer without massive entries has no share
    generator = np.random.default_rng(seed)
    null = np.empty(_SHUFFLES)
    for draw_ in range(_SHUFFLES):
        null[draw_] = (generator.permuted(votes_LD, axis=1) * slow_LD).sum()
    quarter_LD = turns_LD <= np.quantile(turns_LD, 0.25, axis=1, keepdims=True)
    return {
        "share": to_plain(ratio_interval(slow_L[holding], entries_L[holding], what="layers")),
        "base": float((entries_L * slow_LD.mean(axis=1)).sum() / entries_L.sum()),
        "p": float((1 + (null >= slow_L.sum() - 1e-9).sum()) / (1 + _SHUFFLES)),
        "quarter": float((votes_LD * quarter_LD).sum() / votes_LD.sum()),
        "massive_by_turns": np.histogram(turns_LD, _EDGES, weights=votes_LD)[0].tolist(),
        "dims_by_turns": np.histogram(turns_LD, _EDGES)[0].tolist(),
    }


def _turns(rotary: Rotary | None, length: int, dims: int) -> list[float] | None:
    """How many turns each dim's pair makes within a distance; 0 for dims that are not rotated."""
    if rotary is None:
        return None
    pairs = [rotary.pair_of(dim) for dim in range(dims)]
    return [0.0 if pair is None else rotary.inv_freq[pair] * length / (2 * np.pi) for pair in pairs]


# --- tables ---------------------------------------------------------------------------------------------------------


def _shares(data: dict[str, Any]) -> Table:
    rows = []
    for name, seen in data.items():
        for tensor, of in seen["tensors"].items():
            for boundary, band in of["bands"].items():
                found = band or {}
                rows.append(
                    (
                        name,
                        LETTERS[tensor],
                        boundary,
                        of["massive"],
                        of["chance"],
                        Interval(**found["share"]) if found else None,
                        found.get("base"),
                        found.get("p"),
                        found.get("quarter"),
                    )
                )
    return Table(
        title="Massive entries in dims that never complete a turn",
        columns=(
            "model",
            "tensor",
            "within",
            "massive",
            "by chance",
            "share that never turns",
            "share of all dims",
            "p (shuffled dims)",
            "share in the slowest quarter",
        ),
        rows=tuple(rows),
        note="Intervals: layers resampled. p: dims shuffled alike in all heads of a layer. Distances seen: a layer "
        "with a window sees no further. The authors' own tensors (one layer, one prompt): 95.8 % of Q and 95.7 % of K "
        "for Llama-2-7B-chat against 28 % of all dims, 95.3 % and 100 % for Llama-3-8B against 45 %. Their table 3: "
        "concentrated in all models with RoPE, in none of GPT-2, GPT-Neo, OPT and Jamba.",
    )


def _bands(data: dict[str, Any]) -> Table:
    rows = []
    for name, seen in data.items():
        for tensor, of in seen["tensors"].items():
            band = of["bands"]["distances seen"]
            if band:
                rows += [(name, LETTERS[tensor], *cells) for cells in _coarse(band)]
    return Table(
        title="By rotary band: turns within the distances seen",
        columns=("model", "tensor", "turns", "massive", "share of massive", "share of dims"),
        rows=tuple(rows),
        note="Dims that a partial RoPE leaves out make 0 turns.",
    )


def _coarse(band: dict[str, Any]) -> list[tuple[str, int, float, float]]:
    """Six bands: their names, massive entries, and the shares of massive entries and of dims."""
    massive, dims = np.array(band["massive_by_turns"]), np.array(band["dims_by_turns"])
    low = np.array(_EDGES[:-1])
    cells = []
    for start, end in itertools.pairwise((0.0, 0.25, 0.5, 1.0, 4.0, 32.0, float("inf"))):
        here = (low >= start) & (low < end)
        name = f"{start:g} to {end:g}" if np.isfinite(end) else f"{start:g} and more"
        share, of_dims = massive[here].sum() / massive.sum(), dims[here].sum() / dims.sum()
        cells.append((name, int(massive[here].sum()), float(share), float(of_dims)))
    return cells


def _notes(name: str, seen: dict[str, Any]) -> list[str]:
    notes = []
    for tensor, of in seen["tensors"].items():
        beyond = "more than" if of["massive"] > 2 * of["chance"] + 1 else "no more than about"
        start = f"{name}, {LETTERS[tensor]}: {of['massive']} massive entries, {beyond} the {of['chance']:.1f} of chance"
        rope = of["bands"]["distances seen"]
        if not rope:
            why = "the model has no RoPE" if seen["stage"] == "no RoPE" else "none is in a rotated layer"
            notes.append(f"{start}; {why}, so there is no band to compare.")
            continue
        share = Interval(**rope["share"])
        if rope["p"] < 0.05:
            says = "more than shuffled dims give"
        elif share.high < rope["base"]:
            says = "fewer than chance"
        else:
            says = "not shown to be more than shuffled dims give"
        notes.append(
            f"{start}; {share.value:.0%} [{share.low:.0%}, {share.high:.0%}] of them in dims that never turn, as "
            f"{rope['base']:.0%} of all dims are: {says} (p = {rope['p']:.2g})"
            f"{_otherwise(of)}."
        )
    if seen["length_from"] == "max_position_embeddings":
        notes.append(
            f"{name}: the training length is taken to be max_position_embeddings ({seen['length']:,}); where a model "
            "was trained on shorter texts, more dims never turned: set train_length."
        )
    return notes


def _otherwise(of: dict[str, Any]) -> str:
    """The same by the stricter boundary, where a window makes the two differ: both are always said."""
    band = of["bands"].get("training length")
    if not band:
        return ""
    share = Interval(**band["share"])
    return (
        f"; with the training length for every layer, windows or not, {share.value:.0%} [{share.low:.0%}, "
        f"{share.high:.0%}] against {band['base']:.0%} (p = {band['p']:.2g})"
    )


# --- figures --------------------------------------------------------------------------------------------------------


def draw(result: Result, width: float) -> dict[str, Figure]:
    """A panel a model: shares of massive entries and of all dims by the turns that they make."""
    shown = [
        (name, seen)
        for name, seen in result.data.items()
        if any(_band(seen["tensors"][tensor]) for tensor, _ in _kinds(seen))
    ]
    if not shown:
        return {}
    wide = width > 600
    columns = min(2, len(shown)) if wide else 1
    lines = -(-len(shown) // columns)
    figure = new_figure(width, (60 if wide else 120) + 290 * lines)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes, (name, seen) in zip(panels, shown, strict=False):
        _panel(axes, name, seen)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=4 if wide else 1)
    return {"rope": figure}


def _kinds(seen: dict[str, Any]) -> tuple[tuple[str, str], tuple[str, str]]:
    """The tensors that are drawn, and their colours: after RoPE where that can be read."""
    stage = "" if "query" in seen["tensors"] else ".pre_rope"
    return (f"query{stage}", VERMILLION), (f"key{stage}", BLUE)


def _band(of: dict[str, Any]) -> dict[str, Any] | None:
    return of["bands"]["distances seen"]


def _panel(axes: Axes, name: str, seen: dict[str, Any]) -> None:
    """Bars stand on bins of turns, by factors of two; what makes fewer or more turns counts at the ends."""
    place = np.arange(len(_EDGES) - 1)
    bands = [(tensor, colour, _band(seen["tensors"][tensor])) for tensor, colour in _kinds(seen)]
    axes.axvspan(-0.5, _EDGES.index(1.0) - 0.5, color=RULE, alpha=0.4, linewidth=0, label="never complete a turn")
    for number, (tensor, colour, band) in enumerate(bands):
        share = np.zeros(len(place))
        if band:
            share = np.array(band["massive_by_turns"]) / sum(band["massive_by_turns"])
            dims = np.array(band["dims_by_turns"]) / sum(band["dims_by_turns"])
        axes.bar(
            place + 0.4 * number - 0.2,
            share,
            width=0.4,
            color=colour,
            label=f"massive entries of {LETTERS[tensor]}",
        )
    axes.stairs(dims, np.arange(len(_EDGES)) - 0.5, color=INK, linewidth=1.3, label="all dims")
    axes.set_xlim(-0.5, len(place) - 0.5)
    ticks = [_EDGES.index(2.0**power) for power in range(-8, 13, 4)]
    axes.set_xticks(np.array(ticks) - 0.5, [str(Fraction(_EDGES[tick])) for tick in ticks])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_title(name)
    axes.set_xlabel("turns over the distances that the layer sees")

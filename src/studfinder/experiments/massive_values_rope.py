"""Where in the rotary spectrum massive values sit (Jin et al. 2025, arXiv 2502.01563, table 3 and section 6).

What it asks: do massive values sit in the slow dims of RoPE, and do models without RoPE have none? How: for each model
given, entries of Q and K above lambda times their head's mean, sorted by how many turns their rotary pair makes within
the training length. The boundary is the partial cycle (Jonasson 2025, arXiv 2503.01832): pairs that never complete one
turn. What to look at: the share of massive entries beyond that boundary against the share of dims beyond it, which is
what chance gives.

The paper says "low frequency", draws the slower half of the dims and counts nothing; it compares unrelated models with
and without RoPE, which is a correlation over models and no proof of a cause. The null here keeps what heads share: dims
are shuffled in the same way in all heads of a layer (Q and K apart). Intervals resample layers.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.experiments.norms import NAMES, Maps, chance_above, ratios, read_maps
from studfinder.models import LM, Rotary, rotary_of, train_length
from studfinder.records import Interval, Result, Table, to_plain
from studfinder.report.style import BLUE, MUTED, RULE, VERMILLION, new_figure
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
    tensors = {}
    for tensor in (tensor for tensor in maps.tensors if tensor != "value"):
        norm_LHD = maps.norm_LHD(tensor)
        above_LHD = ratios(norm_LHD) > lam
        rotary = [rotary_of(lm, layer) for layer in maps.layers[tensor]]
        tensors[tensor] = {
            "massive": int(above_LHD.sum()),
            "entries": norm_LHD.size,
            "chance": chance_above(norm_LHD.shape[-1], lam) * norm_LHD.size,
            "rope": _against_rope(above_LHD, rotary, length, int(bench.settings["seed"])),
        }
    return {
        "lambda": lam,
        "stage": lm.anatomy.stage,
        "length": length,
        "length_from": source,
        "tensors": tensors,
    }


def _against_rope(
    above_LHD: np.ndarray, rotary: list[Rotary | None], length: int, seed: int
) -> dict[str, Any] | None:
    """What share of the massive entries lies in dims that never turn; None without RoPE or without massive entries."""
    turning = [layer for layer, of in enumerate(rotary) if of is not None]
    votes_LD = above_LHD.sum(axis=1)[turning].astype(float)
    if not votes_LD.sum():
        return None
    dims = votes_LD.shape[1]
    flags_LD = np.array([rotary[layer].never_turns(length)[:dims] for layer in turning])  # type: ignore[union-attr]
    entries_L, slow_L = votes_LD.sum(axis=1), (votes_LD * flags_LD).sum(axis=1)
    generator = np.random.default_rng(seed)
    order_NLD = generator.random((_SHUFFLES, *votes_LD.shape)).argsort(axis=-1)
    null_N = (np.take_along_axis(votes_LD[None], order_NLD, axis=-1) * flags_LD).sum(axis=(1, 2))
    turns = [_turns(rotary[layer], length, dims) for layer in turning]  # type: ignore[arg-type]
    edges = [0.0, 0.25, 0.5, 1.0, 4.0, 32.0, float("inf")]
    return {
        "share": to_plain(ratio_interval(slow_L, entries_L, what="layers")),
        "base": float((entries_L * flags_LD.mean(axis=1)).sum() / entries_L.sum()),
        "p": float((1 + (null_N >= slow_L.sum() - 1e-9).sum()) / (1 + _SHUFFLES)),
        "quarter": _slowest_quarter(votes_LD, np.array(turns)),
        "edges": [edge if np.isfinite(edge) else None for edge in edges],
        "by_turns": np.histogram(np.ravel(turns), edges, weights=np.ravel(votes_LD))[0].tolist(),
        "dims_by_turns": np.histogram(np.ravel(turns), edges)[0].tolist(),
        "votes": votes_LD.sum(axis=0).tolist(),
        "turns": np.mean(turns, axis=0).tolist(),
    }


def _turns(rotary: Rotary, length: int, dims: int) -> list[float]:
    """How many turns each dim's pair makes within the training length; 0 for dims that are not rotated."""
    pairs = [rotary.pair_of(dim) for dim in range(dims)]
    return [0.0 if pair is None else rotary.inv_freq[pair] * length / (2 * np.pi) for pair in pairs]


def _slowest_quarter(votes_LD: np.ndarray, turns_LD: np.ndarray) -> float:
    slow_LD = turns_LD <= np.quantile(turns_LD, 0.25, axis=1, keepdims=True)
    return float((votes_LD * slow_LD).sum() / votes_LD.sum())


# --- tables ---------------------------------------------------------------------------------------------------------


def _shares(data: dict[str, Any]) -> Table:
    rows = []
    for name, seen in data.items():
        for tensor, of in seen["tensors"].items():
            rope = of["rope"] or {}
            rows.append(
                (
                    name,
                    NAMES[tensor],
                    of["massive"],
                    of["chance"],
                    Interval(**rope["share"]) if rope else None,
                    rope.get("base"),
                    rope.get("p"),
                    rope.get("quarter"),
                    seen["length"],
                )
            )
    return Table(
        title="Massive entries in dims that never complete a turn in training",
        columns=(
            "model",
            "tensor",
            "massive",
            "by chance",
            "share that never turns",
            "share of all such dims",
            "p (shuffled dims)",
            "share in the slowest quarter",
            "training length",
        ),
        rows=tuple(rows),
        note="Intervals: layers resampled. p: dims shuffled alike in all heads of a layer. The authors' own tensors "
        "(one layer, one prompt): 95.8 % of Q and 95.7 % of K for Llama-2-7B-chat against 28 % of all dims, 95.3 % and "
        "100 % for Llama-3-8B against 45 %. Their table 3: concentrated in all models with RoPE, in none of GPT-2, "
        "GPT-Neo, OPT and Jamba.",
    )


def _bands(data: dict[str, Any]) -> Table:
    rows = []
    for name, seen in data.items():
        for tensor, of in seen["tensors"].items():
            if not of["rope"]:
                continue
            edges = of["rope"]["edges"]
            for low, high, n, dims in zip(
                edges[:-1], edges[1:], of["rope"]["by_turns"], of["rope"]["dims_by_turns"], strict=True
            ):
                all_dims, all_n = sum(of["rope"]["dims_by_turns"]), sum(of["rope"]["by_turns"])
                band = f"{low:g} to {high:g}" if high is not None else f"{low:g} and more"
                rows.append((name, NAMES[tensor], band, int(n), n / all_n, dims / all_dims))
    return Table(
        title="By rotary band: turns within the training length",
        columns=("model", "tensor", "turns", "massive", "share of massive", "share of dims"),
        rows=tuple(rows),
        note="Dims that a partial RoPE leaves out make 0 turns.",
    )


def _notes(name: str, seen: dict[str, Any]) -> list[str]:
    notes = []
    for tensor, of in seen["tensors"].items():
        beyond = "more than" if of["massive"] > 2 * of["chance"] + 1 else "no more than about"
        start = f"{name}, {NAMES[tensor]}: {of['massive']} massive entries, {beyond} the {of['chance']:.1f} of chance"
        rope = of["rope"]
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
            f"{start}; {share.value:.0%} [{share.low:.0%}, {share.high:.0%}] of them in dims that never turn within "
            f"{seen['length']:,} tokens ({seen['length_from']}), where {rope['base']:.0%} of all dims are: {says} "
            f"(p = {rope['p']:.2g})."
        )
    if seen["length_from"] == "max_position_embeddings":
        notes.append(
            f"{name}: the training length is taken to be max_position_embeddings; where a model was trained on shorter "
            "texts, more dims never turned: set train_length."
        )
    return notes


# --- figures --------------------------------------------------------------------------------------------------------


def draw(result: Result, width: float) -> dict[str, Figure]:
    """A panel a model: massive entries by rotary pair, fast to slow; the shade is where pairs never turn."""
    with_rope = [(name, seen) for name, seen in result.data.items() if any(t["rope"] for t in seen["tensors"].values())]
    if not with_rope:
        return {}
    wide = width > 600
    columns = min(2, len(with_rope)) if wide else 1
    lines = -(-len(with_rope) // columns)
    figure = new_figure(width, 50 + 300 * lines)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes, (name, seen) in zip(panels, with_rope, strict=False):
        _panel(axes, name, seen)
    for axes in panels[len(with_rope) :]:
        axes.set_axis_off()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=3 if wide else 1)
    return {"rope": figure}


def _panel(axes: Any, name: str, seen: dict[str, Any]) -> None:
    shown = [tensor for tensor in ("query", "key", "query.pre_rope", "key.pre_rope") if tensor in seen["tensors"]][:2]
    below = 0.0
    for tensor, colour in zip(shown, (VERMILLION, BLUE), strict=False):
        rope = seen["tensors"][tensor]["rope"]
        if not rope:
            continue
        turns = np.array(rope["turns"])
        rates, place = np.unique(-turns, return_inverse=True)
        height = np.bincount(place, weights=rope["votes"])
        axes.bar(np.arange(len(rates)), height, bottom=below, width=0.85, color=colour, label=NAMES[tensor])
        below = below + height
        boundary = float((rates < -1).sum()) - 0.5
        ticks = np.linspace(0, len(rates) - 1, 6).round().astype(int)
        axes.set_xticks(ticks, [f"{-rates[tick]:.3g}" for tick in ticks])
        axes.set_xlim(-0.6, len(rates) - 0.4)
    axes.axvspan(boundary, len(rates) - 0.4, color=RULE, alpha=0.45, linewidth=0, label="never complete a turn")
    axes.set_title(name)
    axes.set_ylabel("massive entries, all layers")
    axes.set_xlabel(f"turns of a pair of dims in {seen['length']:,} tokens", color=MUTED)

"""Is the massive part of Q and K a constant, and does context ride on the rest? (Ours; nobody has published it.)

What it asks: before RoPE most of the energy of a massive dim is its mean over tokens. Is that constant all it is there
for (a bias of the attention scores), or does the small rest carry what the model reads from its context? How: in the k
largest dims of every head of Q and K before RoPE either the constant is kept and the deviation taken away, or the other
way round; controls do both to random dims, to the next in norm, and to dims of the same rotary band. Perplexity stands
for fluency, repeated random tokens (induction) for reading the context. What to look at: how much more the repeats lose
when massive dims are held constant than when as many other dims are.

Holding a dim constant takes away only its deviation, which in a massive dim is a small share of its energy; that a
control hurts less is therefore not because less was taken away, and the first table says how much was. The means are
those of each sequence: the edit knows its whole input, also tokens to come.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from studfinder.edits import (
    Edit,
    Entries,
    MatchedDims,
    RandomDims,
    TopDims,
    constant_only,
    deviation_only,
    dims,
    edited,
)
from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.measures import measure_named, perplexity
from studfinder.models import LM, rotary_of
from studfinder.records import Cell, Comparison, Interval, Result, Table
from studfinder.report.style import BLUE, MUTED, RULE, VERMILLION, log_ticks, new_figure
from studfinder.sites import AttentionCall, tapped
from studfinder.stats import crossed
from studfinder.texts import encode, proof_text

EXPERIMENT = Experiment(
    name="massive-values/constant-or-deviation",
    paper="2502.01563",
    shows="ours",
    summary="Are massive dims of Q and K there as a constant, or does context ride on how they deviate from it?",
    needs="about 6 minutes with smollm2 on two cores",
    presets={"cpu": {"limit": 16, "k": [1, 2], "draws": 3, "text": "proof", "repeat": 64}},
)
_WINDOW = 256


def run(bench: Bench) -> Outcome:
    """How much of massive dims is constant, and what becomes of the model without either half."""
    tables, notes, data = [], [], {}
    for name in bench.models:
        with bench.model(name) as lm:
            ks = [int(k) for k in bench.settings["k"]]
            energy = bench.once("energy", partial(_energy, lm, ks))
            clean = bench.once("clean", partial(_scores, bench, lm, ()))
            scores = _edited(bench, lm, ks)
        data[name] = {"energy": energy, "clean": clean, "scores": scores}
        tables += [_energy_table(name, energy), _scores_table(name, clean, scores)]
        notes += [f"{name}: {text}" for text in _notes(ks, clean, scores)]
    return Outcome(tables, notes, data)


def _selections(lm: LM, k: int, draws: int) -> list[tuple[str, list[Entries]]]:
    """Which dims, by the name of the row; several where they are drawn."""
    found: list[tuple[str, list[Entries]]] = [
        (f"{k} massive", [TopDims(k)]),
        (f"{k} random", [RandomDims(k, seed) for seed in range(draws)]),
        (f"{k} next in norm", [MatchedDims(k, "norm")]),
    ]
    if any(rotary_of(lm, layer) is not None for layer in range(len(lm.anatomy.layers))):
        found.append((f"{k} of the same rotary band", [MatchedDims(k, "band", seed) for seed in range(draws)]))
    return found


HALVES = {"held constant": constant_only, "deviation only": deviation_only}


def _edited(bench: Bench, lm: LM, ks: list[int]) -> dict[str, list[Any]]:
    """Scores by row, one record a draw."""
    plan = [
        (f"{name}, {half}", f"{name}, {half} draw {seed}", make(dims(lm, pre_rope=True, select=select)))
        for k in ks
        for name, selects in _selections(lm, k, int(bench.settings["draws"]))
        for half, make in HALVES.items()
        for seed, select in enumerate(selects)
    ]
    scores: dict[str, list[Any]] = {}
    for done, (row, key, edits) in enumerate(plan):
        bench.progress("Q and K by halves", done, len(plan))
        scores.setdefault(row, []).append(bench.once(key, partial(_scores, bench, lm, edits)))
    return scores


def _scores(bench: Bench, lm: LM, edits: tuple[Edit, ...]) -> dict[str, Any]:
    if edits:
        with edited(lm, edits):
            return _scores(bench, lm, ())
    limit, seed = bench.settings["limit"], int(bench.settings["seed"])
    window = min(_WINDOW, lm.anatomy.max_positions or _WINDOW)
    text = perplexity(lm, bench.settings["text"], window=window, limit=limit)
    repeats = measure_named(f"induction:{bench.settings['repeat']}")(lm, limit=limit, seed=seed)
    return {
        "nll": list(text.items["nll"]),
        "tokens": list(text.items["tokens"]),
        "repeats": list(repeats.items["score"]),
        "loss": list(repeats.items["loss"]),
        "text": text.text,
    }


# --- how much is constant -------------------------------------------------------------------------------------------


def _energy(lm: LM, ks: list[int]) -> dict[str, Any]:
    """By tensor and k, a number a layer: the share of the energy in the k largest dims of each head, and the share of
    theirs and of the other dims' energy that is the square of the mean over tokens (mean over heads and prompts)."""
    limit = min(_WINDOW, lm.anatomy.max_positions or _WINDOW)
    found: dict[str, dict[str, dict[int, list[list[float]]]]] = {}

    def read(event: AttentionCall) -> None:
        before = {"query": event.query_pre_BHTD, "key": event.key_pre_BGTD}
        for tensor, values in before.items():
            if values is None:
                continue
            wide = values[0].float()
            square_HD, mean_HD = wide.square().mean(dim=1), wide.mean(dim=1).square()
            for k in ks:
                cells = found.setdefault(tensor, {}).setdefault(str(k), {}).setdefault(event.layer, [])
                cells.append(_halves(square_HD, mean_HD, k))

    with torch.no_grad(), tapped(lm, read={AttentionCall: [read]}, pre_rope=True):
        for ids in encode(lm, proof_text(), limit=limit)[0]:
            lm.model(input_ids=torch.tensor([ids], device=lm.device), use_cache=False)
    return {
        tensor: {k: [np.mean(layers[layer], axis=0).tolist() for layer in sorted(layers)] for k, layers in by_k.items()}
        for tensor, by_k in found.items()
    }


def _halves(square_HD: torch.Tensor, mean_HD: torch.Tensor, k: int) -> list[float]:
    top_HD = torch.zeros_like(square_HD).scatter_(1, square_HD.topk(k, dim=1).indices, 1.0)
    tiny = torch.finfo(square_HD.dtype).tiny

    def share(part_HD: torch.Tensor, whole_HD: torch.Tensor) -> float:
        return float((part_HD.sum(dim=1) / whole_HD.sum(dim=1).clamp_min(tiny)).mean())

    others_HD = 1 - top_HD
    return [
        share(square_HD * top_HD, square_HD),
        share(mean_HD * top_HD, square_HD * top_HD),
        share(mean_HD * others_HD, square_HD * others_HD),
    ]


def _energy_table(name: str, energy: dict[str, Any]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for tensor, by_k in energy.items():
        for k, layers in by_k.items():
            columns = np.array(layers).T
            means = [crossed(lambda m: m["x"], {"x": column[None]}, what="layers") for column in columns]
            rows.append((f"{'Q' if tensor == 'query' else 'K'} before RoPE", int(k), *means))
    return Table(
        title=f"{name}: how much of the largest dims is constant",
        columns=(
            "tensor",
            "k",
            "share of the head's energy in its k largest",
            "of that, constant",
            "constant in the other dims",
        ),
        rows=tuple(rows),
        note="Energy: mean square over tokens; constant: the square of the mean over tokens. Means over heads and the "
        "pieces of our proof text; intervals resample layers.",
    )


# --- what becomes of the model --------------------------------------------------------------------------------------


def _array(scores: list[Any], what: str) -> np.ndarray:
    return np.array([draw[what] for draw in scores], dtype=float)


def perplexity_ratio(scores: list[Any], clean: Any) -> Interval:
    """Perplexity with the edit over perplexity without."""

    def ratio(mean: Any) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.exp((mean["nll"] - mean["clean"]) / mean["tokens"])

    arrays = {"nll": _array(scores, "nll"), "clean": _array([clean], "nll"), "tokens": _array([clean], "tokens")}
    return crossed(ratio, arrays, what="windows")


def difference(scores: list[Any], other: list[Any], what: str = "repeats") -> Interval:
    """Of mean accuracy (or loss) on the repeats, paired by sequence."""
    arrays = {"a": _array(scores, what), "b": _array(other, what)}
    return crossed(lambda m: m["a"] - m["b"], arrays, what="sequences")


def _mean(scores: list[Any], what: str) -> Interval:
    return crossed(lambda m: m["x"], {"x": _array(scores, what)}, what="sequences")


def _scores_table(name: str, clean: Any, scores: dict[str, list[Any]]) -> Table:
    start = float(np.exp(sum(clean["nll"]) / sum(clean["tokens"])))
    rows: list[Any] = [("as it is", start, None, _mean([clean], "repeats"), None, _mean([clean], "loss"))]
    for row, draws in scores.items():
        ratio = perplexity_ratio(draws, clean)
        rows.append(
            (
                row,
                start * ratio.value,
                Comparison(kind="ratio", interval=ratio),
                _mean(draws, "repeats"),
                Comparison(kind="difference", interval=difference(draws, [clean])),
                _mean(draws, "loss"),
            )
        )
    return Table(
        title=f"{name}: one half of some dims of Q and K before RoPE",
        columns=(
            "dims of each head",
            "perplexity",
            "of the clean one",
            "accuracy on repeats",
            "change",
            "loss on repeats (nats)",
        ),
        rows=tuple(rows),
        note=f"Perplexity on {clean['text']}. Repeats: the second half of random tokens that come twice. Held "
        "constant: the dim's mean over tokens; deviation only: the dim less that mean. Intervals: windows or "
        "sequences, and draws of random dims, resampled.",
    )


def _notes(ks: list[int], clean: Any, scores: dict[str, list[Any]]) -> list[str]:
    notes = []
    for k in ks:
        rows = {row.removeprefix(f"{k} "): draws for row, draws in scores.items() if row.startswith(f"{k} ")}
        for half in HALVES:
            own = rows[f"massive, {half}"]
            loss, ratio = difference(own, [clean]), perplexity_ratio(own, clean)
            notes.append(
                f"{k} massive of each head, {half}: perplexity x{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}], "
                f"accuracy on repeats {loss.value:+.2f} [{loss.low:+.2f}, {loss.high:+.2f}]; "
                + "; ".join(_against(own, draws, row) for row, draws in rows.items() if _is_control(row, half))
                + "."
            )
    return notes


def _is_control(row: str, half: str) -> bool:
    return row.endswith(half) and not row.startswith("massive")


def _against(own: list[Any], control: list[Any], row: str) -> str:
    more = difference(own, control)
    says = "lower" if more.high < 0 else "higher" if more.low > 0 else "not distinguishable"
    which = row.split(",")[0]
    dims = f"{which} dims" if which == "random" else f"dims {which}"
    return f"against {dims} {says} ({more.value:+.2f} [{more.low:+.2f}, {more.high:+.2f}])"


def draw(result: Result, width: float) -> dict[str, Figure]:
    """Perplexity and accuracy on repeats, a line a row."""
    figures = {}
    for place, (name, seen) in enumerate(result.data.items()):
        wide = width > 600
        rows = ["as it is", *seen["scores"]]
        figure = new_figure(width, 80 + 26 * len(rows) if wide else 120 + 56 * len(rows))
        panels = figure.subplots(1, 2, sharey=True) if wide else figure.subplots(2, 1)
        start = float(np.exp(sum(seen["clean"]["nll"]) / sum(seen["clean"]["tokens"])))
        ratios = [perplexity_ratio(draws, seen["clean"]) for draws in seen["scores"].values()]
        ppl = [(start, start, start), *((start * i.value, start * i.low, start * i.high) for i in ratios)]
        repeats = [_mean(draws, "repeats") for draws in ([seen["clean"]], *seen["scores"].values())]
        shown = (ppl, [(i.value, i.low, i.high) for i in repeats])
        for axes, values, label in zip(panels, shown, ("perplexity", "accuracy on repeats"), strict=True):
            for line, (row, (value, low, high)) in enumerate(zip(rows, values, strict=True)):
                colour = VERMILLION if "massive" in row else BLUE if line else MUTED
                axes.hlines(line, low, high, color=colour, linewidth=2)
                axes.plot([value], [line], "o", color=colour, markersize=6)
            axes.set_yticks(range(len(rows)), rows, fontsize=11 if wide else 9)
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.grid(axis="x", color=RULE)
            axes.set_xlabel(label)
        panels[0].set_xscale("log")
        log_ticks(panels[0].xaxis, most=5)
        figure.suptitle(f"{name}: dims of each head of Q and K, before RoPE", x=0.01, ha="left", fontsize=12.5)
        figures["halves" if not place else f"halves-{place + 1}"] = figure
    return figures

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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from studfinder.edits import Entries, TopDims, constant_only, deviation_only, dims
from studfinder.experiments.disruptions import CLEAN, draws_of, others
from studfinder.models import LM
from studfinder.records import Cell, Chart, Comparison, Plot, Point, Series, Table, point
from studfinder.records.config import option
from studfinder.sites import AttentionCall, tapped
from studfinder.stats import crossed
from studfinder.studies import GridScores, ModelVariant
from studfinder.studies.experiment import Bench, Experiment, Outcome, StudyConfig
from studfinder.texts import encode, proof_text


@dataclass(frozen=True, kw_only=True)
class ConstantConfig(StudyConfig):
    """Which dims, and what is asked without one half of them."""

    limit: int = option(16, help="Windows of the perplexity, and repeated sequences.", least=1)
    k: tuple[int, ...] = option((1, 2), help="Largest dims of every head.", least=1, commas=True)
    draws: int = option(3, help="Draws of what is random.", least=1)
    text: str = option("proof", help="The text of the perplexity.")
    repeat: int = option(64, help="Random tokens that are repeated.", least=2)


EXPERIMENT = Experiment(
    name="massive-values/constant-or-deviation",
    paper="2502.01563",
    shows="ours",
    summary="Are massive dims of Q and K there as a constant, or does context ride on how they deviate from it?",
    needs="about 6 minutes with smollm2 on two cores",
    presets={"cpu": ConstantConfig()},
    spread=True,
)
HALVES = {"held constant": constant_only, "deviation only": deviation_only}


def run(bench: Bench, lm: LM) -> Outcome:
    """How much of massive dims is constant, and what becomes of the model without either half."""
    own, variants = bench.config, [ModelVariant(CLEAN)]
    energy = bench.once("energy", partial(_energy, lm, own.k))
    for k in own.k:
        rest = others(lm, k, own.draws)
        kinds: dict[str, list[Entries]] = {"massive": [TopDims(k)], "random": rest["random"], **rest}
        for name, selects in kinds.items():
            for half, make in HALVES.items():
                draws = [make(dims(lm, pre_rope=True, select=select)) for select in selects]
                variants += draws_of(lm, f"{k} {'of the ' * name.startswith('same')}{name}, {half}", draws)
    scored = bench.grid(lm, variants, [f"perplexity:{own.text}", f"induction:{own.repeat}"], passes=())
    tables = [_energy_table(energy), _scores_table(scored)]
    return Outcome(tables, _notes(scored, own.k), [_chart(scored)], {"energy": energy})


# --- how much is constant -------------------------------------------------------------------------------------------


def _energy(lm: LM, ks: Sequence[int]) -> dict[str, list[list[float]]]:
    """By "Q" or "K" and k, for every layer: the share of the energy in the k largest dims of each head, and the share
    of theirs and of the other dims' energy that is the square of the mean over tokens (mean over heads and prompts). Q
    and K are read here, since no measure does."""
    found: dict[str, dict[int, list[list[float]]]] = {}

    def read(event: AttentionCall) -> None:
        for tensor, values in (("Q", event.query_pre_BHTD), ("K", event.key_pre_BGTD)):
            if values is None:
                continue
            wide = values[0].float()
            square_HD, mean_HD = wide.square().mean(dim=1), wide.mean(dim=1).square()
            for k in ks:
                layers = found.setdefault(f"{tensor} {k}", {})
                layers.setdefault(event.layer, []).append(_halves(square_HD, mean_HD, k))

    with torch.no_grad(), tapped(lm, read={AttentionCall: [read]}, pre_rope=True):
        for ids in encode(lm, proof_text(), limit=min(256, lm.anatomy.max_positions or 256))[0]:
            lm.model(input_ids=torch.tensor([ids], device=lm.device), use_cache=False)
    return {name: [np.mean(layers[at], axis=0).tolist() for at in sorted(layers)] for name, layers in found.items()}


def _halves(square_HD: torch.Tensor, mean_HD: torch.Tensor, k: int) -> list[float]:
    top_HD = torch.zeros_like(square_HD).scatter_(1, square_HD.topk(k, dim=1).indices, 1.0)
    pairs = [(square_HD * top_HD, square_HD)]
    pairs += [(mean_HD * half_HD, square_HD * half_HD) for half_HD in (top_HD, 1 - top_HD)]
    tiny = torch.finfo(square_HD.dtype).tiny
    return [float((part.sum(dim=1) / whole.sum(dim=1).clamp_min(tiny)).mean()) for part, whole in pairs]


def _energy_table(energy: Mapping[str, list[list[float]]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, layers in energy.items():
        tensor, k = name.split()
        means = [crossed(lambda m: m["x"], {"x": column[None]}, what="layers") for column in np.array(layers).T]
        rows.append((f"{tensor} before RoPE", int(k), *means))
    return Table(
        title="how much of the largest dims is constant",
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


def _ratio(scored: GridScores, row: str) -> Comparison:
    """Perplexity with the edit over perplexity without."""
    names = {"nll": (row, "nll"), "clean": (CLEAN, "nll"), "tokens": (CLEAN, "tokens")}
    arrays = {name: scored.drawn(label, scored.measures[0], what) for name, (label, what) in names.items()}

    def ratio(mean: Mapping[str, np.ndarray]) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.exp((mean["nll"] - mean["clean"]) / mean["tokens"])

    return Comparison(kind="ratio", interval=crossed(ratio, arrays, what="windows"))


def _difference(scored: GridScores, row: str, other: str = CLEAN) -> Comparison:
    """Of mean accuracy on the repeats, paired by sequence."""
    arrays = {"a": scored.drawn(row, scored.measures[1]), "b": scored.drawn(other, scored.measures[1])}
    interval = crossed(lambda mean: mean["a"] - mean["b"], arrays, what="sequences")
    return Comparison(kind="difference", interval=interval)


def _scores_table(scored: GridScores) -> Table:
    clean, repeats = scored.scores[CLEAN][scored.measures[0]], scored.measures[1]
    lines: list[tuple[Cell, ...]] = []
    for row in (CLEAN, *scored.families):
        ratio, change = (_ratio(scored, row), _difference(scored, row)) if lines else (None, None)
        start = clean.value * (ratio.interval.value if ratio else 1)
        score, loss = (scored.mean(row, repeats, name, "sequences") for name in ("score", "loss"))
        lines.append((row, start, ratio, score, change, loss))
    return Table(
        title="one half of some dims of Q and K before RoPE",
        columns=(
            "dims of each head",
            "perplexity",
            "of the clean one",
            "accuracy on repeats",
            "change",
            "loss on repeats (nats)",
        ),
        rows=tuple(lines),
        note=f"Perplexity on {clean.text}. Repeats: the second half of random tokens that come twice. Held "
        "constant: the dim's mean over tokens; deviation only: the dim less that mean. Intervals: windows or "
        "sequences, and draws of random dims, resampled.",
    )


def _notes(scored: GridScores, ks: Sequence[int]) -> list[str]:
    notes = []
    for k in ks:
        for half in HALVES:
            own = f"{k} massive, {half}"
            controls = [one for one in scored.families if one.startswith(f"{k} ") and one.endswith(half) and one != own]
            against = "; ".join(_against(scored, own, control) for control in controls)
            notes.append(
                f"{k} massive of each head, {half}: perplexity x{_ratio(scored, own):.2f}, accuracy on repeats "
                f"{_difference(scored, own):+.2f}; {against}."
            )
    return notes


def _against(scored: GridScores, own: str, control: str) -> str:
    more = _difference(scored, own, control)
    says = "lower" if more.interval.high < 0 else "higher" if more.interval.low > 0 else "not distinguishable"
    which = control.partition(" ")[2].split(",")[0]
    return f"against {'random dims' if which == 'random' else f'dims {which}'} {says} ({more:+.2f})"


def _chart(scored: GridScores) -> Chart:
    """Perplexity and accuracy on repeats, a line a row; the model as it is where nothing changed."""
    start, repeats = (scored.scores[CLEAN][measure].value for measure in scored.measures)

    def plot(x: str, none: float, values: Mapping[str, Point], log: bool = False) -> Plot:
        nothing, series = point(None), []
        for name, massive in (("massive dims", True), ("other dims", False)):
            points = tuple(at if (" massive" in row) == massive else nothing for row, at in values.items())
            series.append(Series(name=name, points=points))
        return Plot(kind="dots", rows=tuple(values), series=tuple(series), x=x, none=none, log=log)

    ratios = {row: point(_ratio(scored, row)) for row in scored.families}
    perplexity = {row: (start * value, start * low, start * high) for row, (value, low, high) in ratios.items()}
    accuracy = {row: point(scored.mean(row, scored.measures[1])) for row in scored.families}
    plots = (plot("perplexity", start, perplexity, log=True), plot("accuracy on repeats", repeats, accuracy))
    return Chart(name="halves", plots=plots)

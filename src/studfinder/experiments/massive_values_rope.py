"""Where in the rotary spectrum massive values sit (Jin et al. 2025, arXiv 2502.01563, table 3 and section 6).

What it asks: do massive values sit in the slow dims of RoPE, and do models without RoPE have none? How: for each model
given, entries of Q and K above lambda times their head's mean, sorted by how many turns their rotary pair makes within
the training length. The boundary is the partial cycle (Jonasson 2025, arXiv 2503.01832): pairs that never complete one
turn over the distances that their layer sees, which are those of training, or of the window in a layer that has one.
What to look at: the share of massive entries in such dims against the share of all dims, which is what chance gives.

The paper says "low frequency", draws the slower half of the dims and counts nothing; it compares unrelated models with
and without RoPE, which is a correlation over models and no proof of a cause. The null here keeps what heads share: dims
are shuffled in the same way in all heads of a layer (Q and K apart). A control that is no null: the largest dims of V,
which nothing turns, numbered alike. Intervals resample layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from studfinder.experiments.norms import LETTERS, LambdaConfig, chance_above, norm_ratios, read_maps
from studfinder.models import LM, Rotary, rotary_of, train_length
from studfinder.records import Cell, Chart, Claim, ClaimResult, Interval, Plot, Series, Table, point, to_plain
from studfinder.records.config import option
from studfinder.stats import ratio_interval
from studfinder.studies import judged
from studfinder.studies.experiment import Bench, Experiment, Outcome


@dataclass(frozen=True, kw_only=True)
class RopeConfig(LambdaConfig):
    """And over which distances dims may turn."""

    train_length: int = option(0, help="Tokens of a training text; 0: as the model's config says.", least=0)


BAND = Claim(
    key="massive-values/slow-band",
    says="Massive values of Q and K lie in the dims that RoPE turns slowest.",
    decides="the share of them in dims that never complete a turn within the training length, less that of all dims",
    published="drawn, not counted; their own tensors of one layer, counted here: 96 % against 28 % of all dims "
    "(Llama-2-7B-chat), 96 % against 45 % (Llama-3-8B)",
    paper_effect=0.5,
)
EXPERIMENT = Experiment(
    name="massive-values/rope",
    paper="2502.01563",
    shows="table 3",
    summary="Do massive values sit in the dims that RoPE turns slowest, and only in models with RoPE?",
    needs="about 20 seconds a model of smollm2's size on two cores",
    presets={"cpu": RopeConfig()},
    claims=(BAND,),
)
_SHUFFLES = 2000
_EDGES = (0.0, *(2.0**power for power in range(-8, 13)), float("inf"))
"""Turns: bins by factors of two; dims that are not rotated make none and fall into the first."""


def run(bench: Bench, lm: LM) -> Outcome:
    """A model's share beyond the boundary, with base rate, null and interval."""
    seen = bench.once("bands", partial(_read, bench, lm))
    return Outcome(notes=_notes(seen), charts=_charts(seen), data=seen, claims=[_claim(seen)])


def across(data: dict[str, Any]) -> Outcome:
    """All models in one table."""
    return Outcome([_shares(data), _bands(data)])


def _read(bench: Bench, lm: LM) -> dict[str, Any]:
    own = bench.config
    length, source = train_length(lm, own.train_length or None)
    maps, tensors = read_maps(lm, own.limit, bench.progress), {}
    for tensor in [tensor for tensor in maps.tensors if tensor != "value"]:
        norm_LHD, layers = maps.norm_LHD(tensor), maps.layers[tensor]
        lam = own.lambda_of(norm_LHD.shape[-1])
        above_LHD = norm_ratios(norm_LHD) > lam
        reach = {"distances seen": [min(length, _window(lm, layer) or length) for layer in layers]}
        if reach["distances seen"] != [length] * len(layers):
            reach["training length"] = [length] * len(layers)
        tensors[tensor] = {
            "massive": int(above_LHD.sum()),
            "lambda": lam,
            "chance": chance_above(norm_LHD.shape[-1], lam) * norm_LHD.size,
            "bands": {name: _against_rope(lm, layers, above_LHD, far, own.seed) for name, far in reach.items()},
        }
    value_LHD, layers = maps.norm_LHD("value"), maps.layers["value"]
    largest_LHD = value_LHD == value_LHD.max(axis=-1, keepdims=True)
    value = _against_rope(lm, layers, largest_LHD, [length] * len(layers), own.seed)
    return {"stage": lm.anatomy.stage, "length": length, "length_from": source, "tensors": tensors, "value": value}


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
    rotary = [rotary_of(lm, layer) for layer in layers]
    rotated = [place for place, own in enumerate(rotary) if own is not None]
    votes_LD = above_LHD.sum(axis=1)[rotated].astype(float)
    if not votes_LD.sum():
        return None
    dims = range(above_LHD.shape[-1])
    turns_LD = np.array([_turns(own, lengths[place], dims) for place, own in enumerate(rotary) if own is not None])
    slow_LD = turns_LD < 1
    entries_L, slow_L = votes_LD.sum(axis=1), (votes_LD * slow_LD).sum(axis=1)
    holding = entries_L > 0  # a layer without massive entries has no share
    generator = np.random.default_rng(seed)
    null = np.array([(generator.permuted(votes_LD, axis=1) * slow_LD).sum() for _ in range(_SHUFFLES)])
    quarter_LD = turns_LD <= np.quantile(turns_LD, 0.25, axis=1, keepdims=True)
    return {
        "share": to_plain(ratio_interval(slow_L[holding], entries_L[holding], what="layers")),
        "base": float((entries_L * slow_LD.mean(axis=1)).sum() / entries_L.sum()),
        "more_by_layer": (slow_L - entries_L * slow_LD.mean(axis=1)).tolist(),
        "entries_by_layer": entries_L.tolist(),
        "p": float((1 + (null >= slow_L.sum() - 1e-9).sum()) / (1 + _SHUFFLES)),
        "quarter": float((votes_LD * quarter_LD).sum() / votes_LD.sum()),
        "massive_by_turns": np.histogram(turns_LD, _EDGES, weights=votes_LD)[0].tolist(),
        "dims_by_turns": np.histogram(turns_LD, _EDGES)[0].tolist(),
    }


def _turns(rotary: Rotary, length: int, dims: Sequence[int]) -> list[float]:
    """How many turns each dim's pair makes within a distance; 0 for dims that are not rotated."""
    pairs = map(rotary.pair_of, dims)
    return [0.0 if pair is None else rotary.inv_freq[pair] * length / (2 * np.pi) for pair in pairs]


def _claim(seen: Mapping[str, Any]) -> ClaimResult:
    """Q and K together, by the boundary that no look at windows moved."""
    stage = "" if "query" in seen["tensors"] else ".pre_rope"
    bands = [seen["tensors"][f"{one}{stage}"]["bands"] for one in ("query", "key")]
    found = [of for band in bands if (of := band.get("training length", band["distances seen"])) is not None]
    if not found:
        why = "the model has no RoPE" if seen["stage"] == "no RoPE" else "nothing is massive in a rotated layer"
        return judged(BAND, None, why=why)
    more_L, entries_L = (np.sum([of[name] for of in found], axis=0) for name in ("more_by_layer", "entries_by_layer"))
    holding = entries_L > 0
    shares = ", ".join(f"{Interval(**of['share']):.0%}" for of in found)
    value = seen["value"]
    return judged(
        BAND,
        ratio_interval(more_L[holding], entries_L[holding], what="layers"),
        effect=float(sum(of["share"]["value"] * sum(of["entries_by_layer"]) for of in found) / entries_L.sum()),
        control=float(sum(of["base"] * sum(of["entries_by_layer"]) for of in found) / entries_L.sum()),
        items=f"{int(entries_L.sum())} entries in {int(holding.sum())} layers",
        why=f"Q and K: {shares}"
        + (f"; of V's largest dims {Interval(**value['share']):.0%} against {value['base']:.0%}" if value else ""),
        cost="a model with more layers, in a minute or two; every one of this model's was looked at",
    )


# --- what is said of it ---------------------------------------------------------------------------------------------


def _shares(data: Mapping[str, Any]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, tensor, of in _tensors(data):
        for boundary, band in of["bands"].items():
            found = band or dict.fromkeys(("base", "p", "quarter"))
            share = Interval(**band["share"]) if band else None
            start = (name, LETTERS[tensor], boundary, of["massive"], of["chance"])
            rows.append((*start, share, found["base"], found["p"], found["quarter"]))
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


def _bands(data: Mapping[str, Any]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    low = np.array(_EDGES[:-1])
    for name, tensor, of in _tensors(data):
        if not (band := of["bands"]["distances seen"]):
            continue
        massive, dims = np.array(band["massive_by_turns"]), np.array(band["dims_by_turns"])
        for start, end in itertools.pairwise((0.0, 0.25, 0.5, 1.0, 4.0, 32.0, float("inf"))):
            here = (low >= start) & (low < end)
            turns = f"{start:g} to {end:g}" if np.isfinite(end) else f"{start:g} and more"
            shares = (float(of[here].sum() / of.sum()) for of in (massive, dims))
            rows.append((name, LETTERS[tensor], turns, int(massive[here].sum()), *shares))
    return Table(
        title="By rotary band: turns within the distances seen",
        columns=("model", "tensor", "turns", "massive", "share of massive", "share of dims"),
        rows=tuple(rows),
        note="Dims that a partial RoPE leaves out make 0 turns.",
    )


def _tensors(data: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for name, seen in data.items():
        for tensor, of in seen["tensors"].items():
            yield name, tensor, of


def _notes(seen: dict[str, Any]) -> list[str]:
    notes = []
    for tensor, of in seen["tensors"].items():
        beyond = "more than" if of["massive"] > 2 * of["chance"] + 1 else "no more than about"
        start = f"{LETTERS[tensor]} has {of['massive']} massive entries, {beyond} the {of['chance']:.1f} of chance"
        if not (rope := of["bands"]["distances seen"]):
            why = "the model has no RoPE" if seen["stage"] == "no RoPE" else "none is in a rotated layer"
            notes.append(f"{start}; {why}, so there is no band to compare.")
            continue
        share = Interval(**rope["share"])
        says = "fewer than chance" if share.high < rope["base"] else "not shown to be more than shuffled dims give"
        if rope["p"] < 0.05:
            says = "more than shuffled dims give"
        otherwise = ""
        if whole := of["bands"].get("training length"):  # the stricter boundary: both are always said
            otherwise = (
                f"; with the training length for every layer, windows or not, {Interval(**whole['share']):.0%} against "
                f"{whole['base']:.0%} (p = {whole['p']:.2g})"
            )
        notes.append(
            f"{start}; {share:.0%} of them in dims that never turn, as {rope['base']:.0%} of all dims are: {says} "
            f"(p = {rope['p']:.2g}){otherwise}."
        )
    if seen["length_from"] == "max_position_embeddings":
        notes.append(
            f"the training length is taken to be max_position_embeddings ({seen['length']:,}); where a model was "
            "trained on shorter texts, more dims never turned: set train_length."
        )
    return notes


def _charts(seen: dict[str, Any]) -> list[Chart]:
    """Shares of massive entries (after RoPE where that can be read) and of all dims by the turns that they make; what
    makes fewer or more turns than is drawn counts at the ends."""
    stage = "" if "query" in seen["tensors"] else ".pre_rope"
    bands = {tensor: seen["tensors"][tensor]["bands"]["distances seen"] for tensor in (f"query{stage}", f"key{stage}")}
    found = {f"massive entries of {LETTERS[name]}": band["massive_by_turns"] for name, band in bands.items() if band}
    if not found:
        return []
    found["all dims"] = next(band["dims_by_turns"] for band in reversed(bands.values()) if band)
    shares = {name: np.array(values) / sum(values) for name, values in found.items()}
    turns = tuple(2.0**power for power in np.arange(-8.5, 13))  # the middles of the bins
    series = [Series(name=n, x=turns, points=tuple(map(point, s)), quiet=n == "all dims") for n, s in shares.items()]
    top = float(max(share.max() for share in shares.values()))
    edge = Series(name="one turn", x=(1.0, 1.0), points=(point(0.0), point(top)), dotted=True, quiet=True)
    x = "turns over the distances that the layer sees"
    y = "share of the entries or dims"
    return [Chart(name="rope", plots=(Plot(kind="lines", series=(*series, edge), x=x, y=y, log_x=True, percent=True),))]

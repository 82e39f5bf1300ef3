"""Why massive activations exist: heads that want to write nothing (Sun et al. 2024, section 4, figures 5 to 8).

The paper shows, by eye, that attention after the layer where massive activations appear concentrates on their tokens,
that keys and values there are nearly the same for any text, and that those tokens therefore add nearly the same vector
to every query: u_k = sum over massive tokens i of p_ki v_i, an implicit bias. No statistic is given. Here, for every
layer, text and head (fixed: the tokens C that are massive right after the onset layer, within a text's first half; and
the queries k of its second half, C left out):

* attention mass: mean over k of the sum over C of p_ki;
* value norm: |v_i| at C over the mean |v_i| at the half's other tokens: much below 1, attending there is a no-op;
* share of the output: |u_k| / |sum over all i of p_ki v_i|;
* constancy: mean_k |u_k - ubar| / |ubar|, 0 if every query gets the same; null: as many random other tokens of the
  same half, twenty draws;
* value across texts: mean cosine between the values of different texts' massive tokens; null: one random token each.

Layers up to and with the onset are "before": their attention cannot see massive activations yet. Texts (our prompts and
our proof text, never fewer than two) are resampled.

Look at: mass times value norm before and after, and constancy against its null.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from studfinder.detectors.attention_sinks import attention_weights
from studfinder.errors import StudfinderError
from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.experiments.massive_onset import Onset, onset_of
from studfinder.models import LM
from studfinder.records import Interval, Result, Table
from studfinder.report.style import GREY, INK, ORANGE, VERMILLION, new_figure
from studfinder.report.words import count, number
from studfinder.sites import AttentionCall, capture, tapped
from studfinder.stats import mean_interval
from studfinder.texts import default_prompts, encode, proof_text

EXPERIMENT = Experiment(
    name="massive-activations/no-op-heads",
    paper="2402.17762",
    shows="figures 5 to 8 (and statistics that are ours)",
    summary="Do heads attend to massive tokens in order to write nothing, or the same to everyone?",
    needs="about 1 minute and 1 GB with smollm2 on two cores",
    presets={"cpu": {"limit": 28, "draws": 20, "window": 512}},
)
_MEASURES = {
    "mass": "attention mass on massive tokens",
    "norm": "their value norm / others'",
    "moved": "mass x value norm",
    "share": "share of the output they make",
    "constancy": "constancy of what they add",
    "null": "constancy, random tokens",
    "apart": "constancy minus random",
}


def run(bench: Bench) -> Outcome:
    """Read every text once for its massive tokens and once for its attention."""
    outcome = Outcome([])
    for name in bench.models:
        with bench.model(name) as lm:
            onset = onset_of(lm)
            texts = [*default_prompts(), *proof_text()][: bench.settings["limit"]]
            encoded = encode(lm, texts, limit=min(bench.settings["window"], lm.anatomy.max_positions or 1 << 30))[0]
            seen = []
            for place, ids in enumerate(encoded):
                bench.progress("reading attention", place, len(encoded))
                read = bench.once(f"text {place}", partial(_read, bench, lm, onset, ids, place))
                if read is not None:
                    seen.append(read)
            bench.progress("read", len(encoded), len(encoded))
        if len(seen) < 2:
            raise StudfinderError(
                f"{count(len(seen), 'text')} of {len(encoded)} can be read: a massive token in the first half, and "
                "attention whose weights can be formed",
                expected="at least two",
                do="Raise --limit or --set window",
            )
        _report(outcome, name, onset, seen)
    return outcome


def _read(bench: Bench, lm: LM, onset: Onset, ids: list[int], place: int) -> dict[str, Any] | None:
    """One text: for each layer the means over heads; None if its first half holds no massive token."""
    site = f"residual[{onset.layer}]"
    ids_BT = torch.tensor([ids], device=lm.device)
    massive_T = onset.massive(capture(lm, ids_BT, [site])[site])[0].any(dim=-1).cpu()
    half = len(ids) // 2
    held = massive_T[:half].nonzero()[:, 0]
    free = (~massive_T[:half]).nonzero()[:, 0]
    queries = half + (~massive_T[half:]).nonzero()[:, 0]
    if not len(held) or len(free) <= len(held) or len(queries) < 2:
        return None
    random = torch.Generator().manual_seed(bench.settings["seed"] + place)
    sets = [free[torch.randperm(len(free), generator=random)[: len(held)]] for _ in range(bench.settings["draws"])]
    layers: dict[str, dict[str, Any]] = {}

    def on_attention(event: AttentionCall) -> None:
        if event.comparable:
            layers[str(event.layer)] = _head_means(event, held, free, queries, sets)

    with torch.no_grad(), tapped(lm, read={AttentionCall: [on_attention]}):
        lm.model(input_ids=ids_BT, use_cache=False)
    return {"held": held.tolist(), "layers": layers} if layers else None


def _head_means(
    event: AttentionCall, held: torch.Tensor, free: torch.Tensor, queries: torch.Tensor, sets: Sequence[torch.Tensor]
) -> dict[str, Any]:
    tokens = event.query_BHTD.shape[2]
    p_HTS = attention_weights(event, 0, tokens, tokens)[0].cpu()[:, queries]
    heads = len(p_HTS)
    value_GSD = event.value_BGSD[0].float().cpu()
    value_HSD = value_GSD.repeat_interleave(heads // len(value_GSD), dim=0)
    norm_HS = value_HSD.norm(dim=-1)
    mass_H = p_HTS[..., held].sum(dim=-1).mean(dim=-1)
    norm_H = norm_HS[:, held].mean(dim=-1) / norm_HS[:, free].mean(dim=-1)
    moved_HT = torch.linalg.vecdot(p_HTS[..., held], norm_HS[:, None, held]) / norm_HS[:, free].mean(dim=-1)[:, None]
    given_HTD = p_HTS[..., held] @ value_HSD[:, held]
    whole_HTD = p_HTS @ value_HSD
    # The mean over queries of the ratio would be ruled by queries whose output happens to vanish.
    share_H = given_HTD.norm(dim=-1).mean(dim=-1) / whole_HTD.norm(dim=-1).mean(dim=-1)
    nulls = torch.stack([_constancy(p_HTS, value_HSD, chosen) for chosen in sets]).mean(dim=0)
    some = int(sets[0][0])
    return {
        "mass": float(mass_H.mean()),
        "norm": float(norm_H.mean()),
        "moved": float(moved_HT.mean()),
        "share": float(share_H.mean()),
        "constancy": float(_constancy(p_HTS, value_HSD, held).mean()),
        "null": float(nulls.mean()),
        "no_op_heads": int(((mass_H > 0.5) & (norm_H < 0.5)).sum()),
        "heads": heads,
        "value": _short(value_GSD[:, held[0]]),
        "other": _short(value_GSD[:, some]),
    }


def _short(value_GD: torch.Tensor) -> list[list[float]]:
    """Four digits: enough for a cosine, and a third of the file."""
    return [[float(f"{x:.4g}") for x in row] for row in value_GD.tolist()]


def _constancy(p_HTS: torch.Tensor, value_HSD: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """mean_k |u_k - ubar| / |ubar| of each head, shape (H,)."""
    u_HTD = p_HTS[..., chosen] @ value_HSD[:, chosen]
    mean_H1D = u_HTD.mean(dim=1, keepdim=True)
    return (u_HTD - mean_H1D).norm(dim=-1).mean(dim=1) / mean_H1D.norm(dim=-1)[:, 0].clamp_min(1e-30)


def _report(outcome: Outcome, name: str, onset: Onset, seen: Sequence[dict[str, Any]]) -> None:
    layers = sorted(int(layer) for layer in seen[0]["layers"])
    phases = {
        f"before: layers to {onset.layer}": [layer for layer in layers if layer <= onset.layer],
        f"after: layers {onset.layer + 1} to {onset.last + 1}": [
            layer for layer in layers if onset.layer < layer <= onset.last + 1
        ],
        f"gone: layers from {onset.last + 2}": [layer for layer in layers if layer > onset.last + 1],
    }
    phases = {label: chosen for label, chosen in phases.items() if chosen}
    found = {label: {key: _over(seen, chosen, key) for key in _MEASURES} for label, chosen in phases.items()}
    cosines = {label: [_cosine(seen, chosen, key) for key in ("value", "other")] for label, chosen in phases.items()}
    outcome.tables.append(
        Table(
            title=f"{name}: before and after massive activations appear",
            columns=("layers", *_MEASURES.values(), "value's cosine across texts", "cosine, random tokens"),
            rows=tuple((label, *found[label].values(), *cosines[label]) for label in phases),
            note="Massive tokens: those of a text's first half that hold a massive activation after layer "
            f"{onset.layer}; queries: the other tokens of its second half. Means over layers and heads, then over "
            f"{count(len(seen), 'text')} (intervals). Constancy: 0 if every query gets the same. The paper has figures "
            "of layers 3, 15 and 30 of LLaMA2-7B and no number.",
        )
    )
    outcome.tables.append(_layer_table(name, seen, layers))
    outcome.notes += _notes(name, onset, seen, found, phases)
    outcome.data[name] = {
        "layers": layers,
        "onset": onset.layer,
        "last": onset.last,
        **{key: [_triple(_over(seen, [layer], key)) for layer in layers] for key in _MEASURES},
    }


def _over(seen: Sequence[dict[str, Any]], layers: Sequence[int], key: str) -> Interval:
    def of(text: dict[str, Any], layer: int) -> float:
        found = text["layers"][str(layer)]
        return found["constancy"] - found["null"] if key == "apart" else found[key]

    return mean_interval([float(np.mean([of(text, layer) for layer in layers])) for text in seen], what="texts")


def _triple(interval: Interval) -> list[float]:
    return [interval.value, interval.low, interval.high]


def _cosine(seen: Sequence[dict[str, Any]], layers: Sequence[int], key: str) -> float:
    """Mean cosine between two texts' value vectors, over layers, KV heads and pairs of texts."""
    means = []
    for layer in layers:
        value_NGD = np.array([text["layers"][str(layer)][key] for text in seen])
        unit = value_NGD / np.maximum(np.linalg.norm(value_NGD, axis=-1, keepdims=True), 1e-30)
        cosine_GNN = np.einsum("ngd,mgd->gnm", unit, unit)
        upper = np.triu_indices(len(seen), k=1)
        means.append(float(cosine_GNN[:, upper[0], upper[1]].mean()))
    return float(np.mean(means))


def _layer_table(name: str, seen: Sequence[dict[str, Any]], layers: Sequence[int]) -> Table:
    rows = []
    for layer in layers:
        here = [text["layers"][str(layer)] for text in seen]
        shown = [_over(seen, [layer], key) for key in ("mass", "norm", "share", "constancy", "null")]
        rows.append((str(layer), *shown, float(np.mean([h["no_op_heads"] for h in here])), here[0]["heads"]))
    columns = [_MEASURES[key] for key in ("mass", "norm", "share", "constancy", "null")]
    return Table(
        title=f"{name}: by layer",
        columns=("layer", *columns, "no-op heads", "heads"),
        rows=tuple(rows),
        note="No-op head: more than half of its attention on massive tokens, whose values are less than half as long "
        "as others'. Mean number over texts.",
    )


def _notes(
    name: str,
    onset: Onset,
    seen: Sequence[dict[str, Any]],
    found: dict[str, dict[str, Interval]],
    phases: dict[str, list[int]],
) -> list[str]:
    after = next((label for label in phases if label.startswith("after")), None)
    before = next((label for label in phases if label.startswith("before")), None)
    notes = []
    if before is not None and after is not None:
        change = mean_interval(_between(seen, phases[before], phases[after]), what="texts")
        went = "grows" if change.low > 0 else "shrinks" if change.high < 0 else "does not clearly change"
        notes.append(
            f"{name}: attention on the massive tokens {went} after they appear (layer {onset.layer}): "
            f"{found[before]['mass'].value:.0%} before, {found[after]['mass'].value:.0%} after "
            f"(difference {change.value:+.0%} [{change.low:+.0%}, {change.high:+.0%}])."
        )
    if after is not None:
        norm, share, apart = found[after]["norm"], found[after]["share"], found[after]["apart"]
        short = "shorter than" if norm.high < 1 else "longer than" if norm.low > 1 else "about as long as"
        steady = "steadier than" if apart.high < 0 else "less steady than" if apart.low > 0 else "about as steady as"
        notes.append(
            f"{name}: there their values are {short} others' ({number(norm.value)} times [{number(norm.low)}, "
            f"{number(norm.high)}]), they make {share.value:.0%} of the heads' output by length, and what they add is "
            f"{steady} what random tokens add (constancy {number(found[after]['constancy'].value)} against "
            f"{number(found[after]['null'].value)})."
        )
    return notes


def _between(seen: Sequence[dict[str, Any]], before: Sequence[int], after: Sequence[int]) -> list[float]:
    """By how much the attention mass grows from some layers to others, in each text."""

    def mass(text: dict[str, Any], layers: Sequence[int]) -> float:
        return float(np.mean([text["layers"][str(layer)]["mass"] for layer in layers]))

    return [mass(text, after) - mass(text, before) for text in seen]


def draw(result: Result, width: float) -> dict[str, Figure]:
    """Mass, value norm and constancy by layer, one above the other."""
    figures = {}
    wide = width > 600
    for place, (name, seen) in enumerate(result.data.items()):
        figure = new_figure(width, 560 if wide else 600)
        panels = figure.subplots(3, 1, sharex=True)
        drawn = (
            ("attention mass", (("mass", VERMILLION),)),
            ("value norm / others'" if wide else "value norm", (("norm", VERMILLION),)),
            ("variation over queries" if wide else "variation", (("null", GREY), ("constancy", VERMILLION))),
        )
        for axes, (label, keys) in zip(panels, drawn, strict=True):
            for key, colour in keys:
                value, low, high = np.array(seen[key], dtype=float).T
                axes.fill_between(seen["layers"], low, high, color=colour, alpha=0.2, linewidth=0)
                text = "random tokens" if key == "null" else "massive tokens"
                axes.plot(seen["layers"], value, color=colour, linewidth=2, marker="o", markersize=3, label=text)
            axes.axvspan(seen["onset"] + 0.5, seen["last"] + 1.5, color=ORANGE, alpha=0.13, linewidth=0)
            axes.set_ylim(bottom=0)
            axes.set_ylabel(label)
            axes.grid(axis="y")
        panels[1].axhline(1, color=INK, linewidth=1)
        panels[2].set_xlabel(f"attention of layer ({name}); shaded: massive activations are there")
        if not wide:
            panels[2].set_xlabel("layer; shaded: massive ones are there")
        panels[2].xaxis.set_major_locator(MaxNLocator(10 if wide else 6, integer=True))
        handles, labels = panels[2].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=2)
        figures["layers" if not place else f"layers-{place + 1}"] = figure
    return figures

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
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from studfinder.detectors.attention_sinks import attention_weights
from studfinder.errors import StudfinderError
from studfinder.experiments.massive_onset import Onset, onset_of
from studfinder.models import LM
from studfinder.records import Cell, Chart, Interval, Plot, Table, line
from studfinder.records.config import option
from studfinder.report.words import count, number, times
from studfinder.sites import AttentionCall, capture, tapped
from studfinder.stats import mean_interval
from studfinder.studies.experiment import Bench, Experiment, Outcome, StudyConfig
from studfinder.texts import default_prompts, encode, proof_text


@dataclass(frozen=True, kw_only=True)
class NoOpConfig(StudyConfig):
    """Which texts, and how the null is drawn."""

    limit: int = option(28, help="Of our prompts and our proof text.", least=1)
    draws: int = option(20, help="Draws of random tokens.", least=1)
    window: int = option(512, help="Tokens of a text, at most.", least=1)


EXPERIMENT = Experiment(
    name="massive-activations/no-op-heads",
    paper="2402.17762",
    shows="figures 5 to 8 (and statistics that are ours)",
    summary="Do heads attend to massive tokens in order to write nothing, or the same to everyone?",
    needs="about 1 minute and 1 GB with smollm2 on two cores",
    presets={"cpu": NoOpConfig()},
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
_Texts = Sequence[dict[str, Any]]
"""What `_read` gives, by text."""


def run(bench: Bench, lm: LM) -> Outcome:
    """Read every text once for its massive tokens and once for its attention."""
    onset, own = onset_of(lm), bench.config
    texts = [*default_prompts(), *proof_text()][: own.limit]
    encoded = encode(lm, texts, limit=min(own.window, lm.anatomy.max_positions or 1 << 30))[0]
    seen = []
    for place, ids in enumerate(encoded):
        bench.progress("reading attention", place, len(encoded))
        read = bench.once(f"text {place}", partial(_read, own, lm, onset, ids, place))
        seen += [read] if read is not None else []
    if len(seen) < 2:
        raise StudfinderError(
            f"{count(len(seen), 'text')} of {len(encoded)} can be read: a massive token in the first half, and "
            "attention whose weights can be formed",
            expected="at least two",
            do="Raise --limit or --set window",
        )
    layers = sorted(map(int, seen[0]["layers"]))
    before, after = f"before: layers to {onset.layer}", f"after: layers {onset.layer + 1} to {onset.last + 1}"
    phases: dict[str, list[int]] = {}
    for layer in layers:
        late = after if layer <= onset.last + 1 else f"gone: layers from {onset.last + 2}"
        phases.setdefault(before if layer <= onset.layer else late, []).append(layer)
    tables = [_phase_table(onset, seen, phases), _layer_table(seen, layers)]
    notes = _notes(onset, seen, phases.get(before), phases[after]) if after in phases else []
    return Outcome(tables, notes, [_chart(onset, seen, layers)])


def _read(own: NoOpConfig, lm: LM, onset: Onset, ids: list[int], place: int) -> dict[str, Any] | None:
    """One text: for each layer the means over heads; None if its first half holds no massive token. Read here: no
    measure has it."""
    site = f"residual[{onset.layer}]"
    ids_BT = torch.tensor([ids], device=lm.device)
    massive_T = onset.massive(capture(lm, ids_BT, [site])[site])[0].any(dim=-1).cpu()
    half = len(ids) // 2
    held = massive_T[:half].nonzero()[:, 0]
    free = (~massive_T[:half]).nonzero()[:, 0]
    queries = half + (~massive_T[half:]).nonzero()[:, 0]
    if not len(held) or len(free) <= len(held) or len(queries) < 2:
        return None
    random = torch.Generator().manual_seed(own.seed + place)
    sets = [free[torch.randperm(len(free), generator=random)[: len(held)]] for _ in range(own.draws)]
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
    constancy = float(_constancy(p_HTS, value_HSD, held).mean())
    null = float(torch.stack([_constancy(p_HTS, value_HSD, chosen) for chosen in sets]).mean(dim=0).mean())
    return {
        "mass": float(mass_H.mean()),
        "norm": float(norm_H.mean()),
        "moved": float(moved_HT.mean()),
        "share": float(share_H.mean()),
        "constancy": constancy,
        "null": null,
        "apart": constancy - null,
        "no_op_heads": int(((mass_H > 0.5) & (norm_H < 0.5)).sum()),
        "heads": heads,
        # Four digits: enough for a cosine, and a third of the file.
        "value": [[float(f"{x:.4g}") for x in row] for row in value_GSD[:, held[0]].tolist()],
        "other": [[float(f"{x:.4g}") for x in row] for row in value_GSD[:, sets[0][0]].tolist()],
    }


def _constancy(p_HTS: torch.Tensor, value_HSD: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """mean_k |u_k - ubar| / |ubar| of each head, shape (H,)."""
    u_HTD = p_HTS[..., chosen] @ value_HSD[:, chosen]
    mean_H1D = u_HTD.mean(dim=1, keepdim=True)
    return (u_HTD - mean_H1D).norm(dim=-1).mean(dim=1) / mean_H1D.norm(dim=-1)[:, 0].clamp_min(1e-30)


def _over(seen: _Texts, layers: Sequence[int], key: str) -> Interval:
    return mean_interval(_by_text(seen, layers, key), what="texts")


def _by_text(seen: _Texts, layers: Sequence[int], key: str) -> np.ndarray:
    """Each text's mean over layers."""
    return np.array([np.mean([text["layers"][str(layer)][key] for layer in layers]) for text in seen])


def _cosine(seen: _Texts, layers: Sequence[int], key: str) -> float:
    """Mean cosine between two texts' value vectors, over layers, KV heads and pairs of texts."""
    means = []
    for layer in layers:
        value_NGD = np.array([text["layers"][str(layer)][key] for text in seen])
        unit = value_NGD / np.maximum(np.linalg.norm(value_NGD, axis=-1, keepdims=True), 1e-30)
        cosine_GNN = np.einsum("ngd,mgd->gnm", unit, unit)
        upper = np.triu_indices(len(seen), k=1)
        means.append(float(cosine_GNN[:, upper[0], upper[1]].mean()))
    return float(np.mean(means))


def _phase_table(onset: Onset, seen: _Texts, phases: dict[str, list[int]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for phase, layers in phases.items():
        cosines = (_cosine(seen, layers, key) for key in ("value", "other"))
        rows.append((phase, *(_over(seen, layers, key) for key in _MEASURES), *cosines))
    return Table(
        title="before and after massive activations appear",
        columns=("layers", *_MEASURES.values(), "value's cosine across texts", "cosine, random tokens"),
        rows=tuple(rows),
        note="Massive tokens: those of a text's first half that hold a massive activation after layer "
        f"{onset.layer}; queries: the other tokens of its second half. Means over layers and heads, then over "
        f"{count(len(seen), 'text')} (intervals). Constancy: 0 if every query gets the same. The paper has figures "
        "of layers 3, 15 and 30 of LLaMA2-7B and no number.",
    )


def _layer_table(seen: _Texts, layers: Sequence[int]) -> Table:
    keys = ("mass", "norm", "share", "constancy", "null")
    rows: list[tuple[Cell, ...]] = []
    for layer in layers:
        heads = seen[0]["layers"][str(layer)]["heads"]
        shown = (_over(seen, [layer], key) for key in keys)
        rows.append((str(layer), *shown, float(_by_text(seen, [layer], "no_op_heads").mean()), heads))
    return Table(
        title="by layer",
        columns=("layer", *(_MEASURES[key] for key in keys), "no-op heads", "heads"),
        rows=tuple(rows),
        note="No-op head: more than half of its attention on massive tokens, whose values are less than half as long "
        "as others'. Mean number over texts.",
    )


def _notes(onset: Onset, seen: _Texts, before: Sequence[int] | None, after: Sequence[int]) -> list[str]:
    notes = []
    if before is not None:
        mass, then = (_by_text(seen, layers, "mass") for layers in (before, after))
        change = mean_interval(then - mass, what="texts")
        went = "grows" if change.low > 0 else "shrinks" if change.high < 0 else "does not clearly change"
        notes.append(
            f"attention on the massive tokens {went} after they appear (layer {onset.layer}): {mass.mean():.0%} "
            f"before, {then.mean():.0%} after (difference {change:+.0%})."
        )
    share, constancy, null = (_by_text(seen, after, key).mean() for key in ("share", "constancy", "null"))
    norm, apart = (_over(seen, after, key) for key in ("norm", "apart"))
    short = "shorter than" if norm.high < 1 else "longer than" if norm.low > 1 else "about as long as"
    how = "steadier than" if apart.high < 0 else "less steady than" if apart.low > 0 else "about as steady as"
    notes.append(
        f"there their values are {short} others' ({times(norm)}), they make {share:.0%} of the heads' output by "
        f"length, and what they add is {how} what random tokens add (constancy {number(constancy)} against "
        f"{number(null)})."
    )
    return notes


def _chart(onset: Onset, seen: _Texts, layers: Sequence[int]) -> Chart:
    """Mass, value norm and constancy by layer."""

    def plot(title: str, *keys: str, none: float | None = None) -> Plot:
        names = {key: "random tokens" if key == "null" else "massive tokens" for key in keys}
        series = tuple(
            line(name, layers, (_over(seen, [layer], key) for layer in layers), quiet=key == "null")
            for key, name in names.items()
        )
        x, shaded = "layer; shaded: massive ones are there", (onset.layer + 0.5, onset.last + 1.5)
        return Plot(kind="lines", series=series, title=title, x=x, none=none, shaded=shaded)

    norm = plot("value norm / others'", "norm", none=1.0)
    return Chart(
        name="layers", plots=(plot("attention mass", "mass"), norm, plot("variation over queries", "null", "constancy"))
    )

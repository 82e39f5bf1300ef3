"""Where massive activations are (Sun et al. 2024, section 2, figures 1 to 4 and table 1).

The paper draws the three largest magnitudes and the median of the residual stream after every layer, averaged over ten
windows of RedPajama without BOS, and says by eye in which dims and at which tokens they sit. Here the paper's rule,
|a| > 100 and |a| > 1,000 times the window's median after that layer, is applied to every entry of every window: our
twelve prompts and windows of a corpus, with the tokenizer's own BOS habit, with BOS and without. Kinds of tokens are a
rule too: first, delimiter (punctuation, white space), low-semantic (whole function words, single digits), other; every
token is of one. A share has the wider of two intervals, the exact one over tokens and the bootstrap over windows, so
that a share of zero has an upper bound. The control of whether there are any: the same model with the input channels of
each block's matrices in random order, which keeps every number and undoes what they do together. A dim that is massive
at most tokens is another thing than a spike (an outlier feature); it is left out where kinds of tokens are judged.
Layers count from 0.

Look at: the jump at the layer where they enter, the dims, and which share of each kind of tokens holds one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from studfinder.experiments.massive_reading import conditions, corpus_windows, ids_of, least_massive, read_residual
from studfinder.experiments.massive_where_claims import (
    PROMPTS,
    TOKEN_KINDS,
    WHERE_CLAIMS,
    SeenWindows,
    dims_of,
    share_of,
    spike_dims,
    tokens_holding,
    where_claims,
)
from studfinder.models import LM
from studfinder.records import Cell, Chart, Plot, Table, line
from studfinder.records.config import option
from studfinder.report.words import count, number
from studfinder.sites import Journal
from studfinder.stats import mean_interval
from studfinder.studies.experiment import Bench, Experiment, Outcome, StudyConfig
from studfinder.texts import default_prompts, token_class, token_text


@dataclass(frozen=True, kw_only=True)
class WhereConfig(StudyConfig):
    """Which windows, beside our prompts."""

    limit: int = option(48, help="Windows of the text.", least=1)
    window: int = option(256, help="Tokens of a window.", least=1)
    text: str = option("c4", help="The text.")
    shuffled: int = option(16, help="Windows that the model with shuffled weights reads.", least=1)


EXPERIMENT = Experiment(
    name="massive-activations/where",
    paper="2402.17762",
    shows="figures 1 to 4 and table 1",
    summary="Where are massive activations: which layers, dims and tokens, with and without BOS?",
    needs="about 2 minutes and 1 GB with smollm2 on two cores",
    presets={"cpu": WhereConfig(), "paper": WhereConfig(window=4096)},
    claims=WHERE_CLAIMS,
)
_TOP = 5


def run(bench: Bench, lm: LM) -> Outcome:
    """Read the residual stream of every window with and without BOS, and of some with shuffled weights."""
    own = bench.config
    every = conditions(lm)
    seen: dict[str, SeenWindows] = {}
    source = ""
    control: dict[str, int] = {}
    for label, bos in every.items():
        prompts = ids_of(lm, default_prompts(), own.window, bos=bos)
        source, windows = corpus_windows(lm, own.text, own.window, own.limit, bos=bos)
        found = []
        for place, ids in enumerate([*prompts, *windows]):
            bench.progress(f"reading, {label}", len(seen) * (own.limit + PROMPTS) + place, 2 * (own.limit + PROMPTS))
            found.append(bench.once(f"{label} {place}", partial(_read, lm, ids)))
        seen[label] = found
        if not control:
            control = bench.once("shuffled", partial(_shuffled, lm, [*prompts, *windows][-own.shuffled :], own.seed))
    habit = next(iter(seen))
    return Outcome(
        [
            _size_table(seen, source),
            _kind_table(seen),
            _dim_table(seen),
            _layer_table(habit, seen[habit]),
        ],
        [_note(label, found) for label, found in seen.items()],
        [Chart(name="layers", plots=tuple(_plot(label, found) for label, found in seen.items()))],
        claims=where_claims(seen, control, lm.anatomy.hidden),
    )


def _read(lm: LM, ids: list[int]) -> dict[str, Any]:
    """One window: the largest magnitudes and the median after each layer, and every massive entry. Read here, because
    the detector keeps the extremes of all windows together."""
    top: list[list[float]] = []
    medians: list[float] = []
    massive: list[list[Any]] = []

    def see(layer: int, hidden_TC: torch.Tensor, median: float) -> None:
        size_TC = hidden_TC.abs().float()
        medians.append(median)
        top.append(size_TC.flatten().topk(min(_TOP, size_TC.numel())).values.tolist())
        for position, dim in (size_TC > least_massive(median)).nonzero().tolist():
            massive.append([layer, dim, position, float(hidden_TC[position, dim])])

    read_residual(lm, ids, see)
    tokens = [" ", *(token_text(lm, token) for token in ids), " "]
    kinds = [token_class(tokens[i + 1], i, tokens[i], tokens[i + 2]) for i in range(len(ids))]
    return {"top": top, "median": medians, "massive": massive, "kinds": kinds, "tokens": tokens[1:-1]}


def _shuffled(lm: LM, windows: Sequence[Sequence[int]], seed: int) -> dict[str, int]:
    """In how many windows anything is massive while each matrix of a block has its input channels in another order."""
    random, having = torch.Generator().manual_seed(seed), 0
    with Journal(lm.model) as journal:
        for layer in lm.anatomy.layers:
            for name, weight in lm.model.get_submodule(layer.block).named_parameters(prefix=layer.block):
                if weight.ndim > 1:
                    journal.write(name, weight[..., torch.randperm(weight.shape[-1], generator=random)].clone())
        having = sum(bool(_read(lm, list(ids))["massive"]) for ids in windows)
    return {"having": having, "windows": len(windows)}


def _stacked(windows: SeenWindows, what: str) -> np.ndarray:
    """ "top" (windows, layers, ranks) or "median" (windows, layers); the embedding comes first."""
    return np.array([window[what] for window in windows])


def _size_table(seen: dict[str, SeenWindows], source: str) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for label, windows in seen.items():
        top_WLK = _stacked(windows, "top")
        layer = int(top_WLK[:, :, 0].mean(axis=0).argmax())
        sizes = [*top_WLK[:, layer].T, _stacked(windows, "median")[:, layer]]
        rows.append((label, layer - 1, *(mean_interval(size, what="windows") for size in sizes)))
    return Table(
        title="largest |a| after the layer where they are largest",
        columns=("prompts", "layer", *(f"top {rank + 1}" for rank in range(len(rows[0]) - 3)), "median"),
        rows=tuple(rows),
        note=f"Mean over {count(len(next(iter(seen.values()))), 'window')}: our prompts and {source}. The paper, "
        "without BOS: LLaMA2-7B 2622, 1547, 802, 477.3, 156.9, median 0.2; "
        "LLaMA2-13B 1264, 781, 51, 50.5, 47.1, median 0.4.",
    )


def _kind_table(seen: dict[str, SeenWindows]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for label, windows in seen.items():
        for dim in [None, *(dim for dim, _ in dims_of(windows).most_common(3))]:
            for kind in TOKEN_KINDS:
                held, there = tokens_holding(windows, [kind], None if dim is None else [dim])
                texts = Counter(
                    window["tokens"][place]
                    for window in windows
                    for place in {m[2] for m in window["massive"] if dim is None or m[1] == dim}
                    if window["kinds"][place] == kind
                )
                said = ", ".join(repr(text) for text, _ in texts.most_common(5))
                name = "any" if dim is None else str(dim)
                rows.append((label, name, kind, int(there.sum()), int(held.sum()), share_of(held, there), said))
    return Table(
        title="tokens that hold a massive activation, by kind",
        columns=("prompts", "dim", "kind", "tokens", "that hold one", "share", "most often"),
        rows=tuple(rows),
        note="In any layer; the three dims found in most windows. Shares are of the kind, with the wider of the exact "
        "interval over tokens and the bootstrap over windows. Windows of the corpus begin in mid-text.",
    )


def _dim_table(seen: dict[str, SeenWindows]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for label, windows in seen.items():
        for dim, having in dims_of(windows).most_common(6):
            layers: list[int] = []
            largest: dict[tuple[int, int], float] = {}  # one value a token: its largest over the layers
            for place, window in enumerate(windows):
                for layer, _, position, value in (entry for entry in window["massive"] if entry[1] == dim):
                    layers.append(layer)
                    if abs(value) > abs(largest.get((place, position), 0.0)):
                        largest[place, position] = value
            values = np.array(list(largest.values()))
            mean = float(values.mean())
            spread = float(values.std() / abs(values.mean())) if len(values) > 1 and mean else None
            rows.append((label, dim, having / len(windows), min(layers), max(layers), mean, spread))
    columns = ("prompts", "dim", "share of windows", "first after layer", "last after layer", "mean", "spread / |mean|")
    return Table(
        title="the dims",
        columns=columns,
        rows=tuple(rows),
        note="The six dims found in most windows. Mean and spread (standard deviation) over tokens, each at the layer "
        "where it is largest. The paper: the same dims everywhere, e.g. 1415 and 2533 in LLaMA2-7B.",
    )


def _layer_table(label: str, windows: SeenWindows) -> Table:
    top_WLK, median_WL = _stacked(windows, "top"), _stacked(windows, "median")
    rows: list[tuple[Cell, ...]] = []
    for place in range(top_WLK.shape[1]):
        having = float(np.mean([any(entry[0] == place - 1 for entry in window["massive"]) for window in windows]))
        largest = mean_interval(top_WLK[:, place, 0], what="windows")
        rest = top_WLK[:, place, 1:3].mean(axis=0).tolist()
        called = str(place - 1) if place else "embedding"
        rows.append((called, largest, *rest, float(median_WL[:, place].mean()), having))
    heads = ("after layer", "largest", "second", "third")[: len(rows[0]) - 2]
    return Table(
        title=f"by layer, {label}",
        columns=(*heads, "median", "share of windows with a massive activation"),
        rows=tuple(rows),
        note="Means over windows of |a| in the residual stream.",
    )


def _span(windows: SeenWindows) -> tuple[int, int] | None:
    """The first and the last layer after which some window has a massive activation."""
    layers = [entry[0] for window in windows for entry in window["massive"]]
    return (min(layers), max(layers)) if layers else None


def _note(label: str, windows: SeenWindows) -> str:
    span = _span(windows)
    if span is None:
        ratio = max(t[0] / m for w in windows for t, m in zip(w["top"], w["median"], strict=True) if m)
        return f"{label}: no activation is massive; the largest is {number(ratio)} times its layer's median."
    having = sum(bool(window["massive"]) for window in windows)
    held = {kind: tokens_holding(windows, [kind])[0].sum() for kind in TOKEN_KINDS}
    kinds = ", ".join(f"{number(n)} {kind}" for kind, n in sorted(held.items(), key=lambda one: -one[1]) if n)
    always = [str(dim) for dim, n in dims_of(windows).items() if n == having]
    top_L = _stacked(windows, "top").mean(axis=0)[:, 0]
    grows = f"; there the largest |a| goes from {number(top_L[span[0]])} to {number(top_L[span[0] + 1])}"
    most = [str(dim) for dim in dims_of(windows) if dim not in spike_dims(windows)]
    sink = (
        f" Dim {', '.join(most)} is massive at most tokens: no spike, and left out where kinds are judged."
        if most
        else ""
    )
    return (
        f"{label}: {having} of {count(len(windows), 'window')} hold massive activations, first after layer {span[0]} "
        f"and last after layer {span[1]} of {len(top_L) - 2}{grows if span[0] >= 0 else ''}. In all of those windows: "
        f"dim {', '.join(always) or 'none'}. Tokens that hold one, by kind: {kinds}.{sink}"
    )


def _plot(label: str, windows: SeenWindows) -> Plot:
    """The three largest magnitudes and the median by layer, and what is massive."""
    ranks_KL, median_L = _stacked(windows, "top").mean(axis=0).T, _stacked(windows, "median").mean(axis=0)
    x, span = range(-1, len(median_L) - 1), _span(windows)
    series = (
        *(line(name, x, sizes) for name, sizes in zip(("largest |a|", "second", "third"), ranks_KL, strict=False)),
        line("median |a|", x, median_L, quiet=True),
        line("massive above this", x, np.maximum(100, 1000 * median_L), quiet=True, dotted=True),
    )
    shaded = None if span is None else (span[0] - 0.5, span[1] + 0.5)
    below = "after layer; shaded: massive ones are there"
    return Plot(
        kind="lines", series=series, title=label, x=below, y="|a| in the residual stream", log=True, shaded=shaded
    )

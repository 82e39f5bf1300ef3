"""Where massive activations are (Sun et al. 2024, section 2, figures 1 to 4 and table 1).

The paper draws the three largest magnitudes and the median of the residual stream after every layer, averaged over ten
windows of RedPajama without BOS, and says by eye in which dims and at which tokens they sit. Here the paper's rule,
|a| > 100 and |a| > 1,000 times the window's median after that layer, is applied to every entry of every window: our
twelve prompts and windows of a corpus, with the tokenizer's own BOS habit, with BOS and without. Token classes are a
rule too: first, delimiter (punctuation, white space), low-semantic (function words, single digits), other. Intervals
resample windows. Layers count from 0.

Look at: the jump at the layer where they enter, the dims, and which share of each class of tokens holds one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from studfinder.models import LM
from studfinder.records import Cell, Chart, Plot, Table, line
from studfinder.records.config import option
from studfinder.report.words import count, number
from studfinder.sites import BlockOutput, tapped
from studfinder.stats import AbsHistogram, mean_interval, ratio_interval
from studfinder.studies.experiment import Bench, Experiment, Outcome, StudyConfig
from studfinder.texts import WHOLE, Text, corpus, default_prompts, encode, token_class, token_text


@dataclass(frozen=True, kw_only=True)
class WhereConfig(StudyConfig):
    """Which windows, beside our prompts."""

    limit: int = option(10, help="Windows of the text.", least=1)
    window: int = option(512, help="Tokens of a window.", least=1)
    text: str = option("c4", help="The text.")


EXPERIMENT = Experiment(
    name="massive-activations/where",
    paper="2402.17762",
    shows="figures 1 to 4 and table 1",
    summary="Where are massive activations: which layers, dims and tokens, with and without BOS?",
    needs="about 1 minute and 1 GB with smollm2 on two cores",
    presets={"cpu": WhereConfig(), "paper": WhereConfig(window=4096)},
)
_TOP = 5
_CLASSES = ("first", "delimiter", "low-semantic", "other")
_Windows = Sequence[dict[str, Any]]
"""What `_read` gives, by window."""


def run(bench: Bench, lm: LM) -> Outcome:
    """Read the residual stream of every window with and without BOS."""
    source, windows = _windows(bench, lm)
    conditions = _conditions(lm)
    seen: dict[str, _Windows] = {}
    for label, bos in conditions.items():
        done, found = len(seen) * len(windows), []
        for place, (title, ids) in enumerate(windows):
            bench.progress(f"reading, {label}", done + place, len(conditions) * len(windows))
            given = [lm.tokenizer.bos_token_id, *ids] if bos and lm.tokenizer is not None else ids
            found.append(bench.once(f"{label} {title}", partial(_read, lm, given)))
        seen[label] = found
    own = next(iter(seen))
    return Outcome(
        [_size_table(seen, source), _class_table(seen), _dim_table(seen), _layer_table(own, seen[own])],
        [_note(label, found) for label, found in seen.items()],
        [Chart(name="layers", plots=tuple(_plot(label, found) for label, found in seen.items()))],
    )


def _windows(bench: Bench, lm: LM) -> tuple[str, list[tuple[str, list[int]]]]:
    """Our prompts and windows of the text, by name, as token ids without BOS."""
    bos = None if lm.tokenizer is None or lm.tokenizer.bos_token_id is None else False
    prompts = default_prompts()
    windows = list(zip([p.name for p in prompts], encode(lm, prompts, bos=bos)[0], strict=True))
    source, documents = corpus(bench.config.text)
    ids = encode(lm, [Text(source, "\n\n".join(documents))], bos=bos, limit=WHOLE)[0][0]
    size = min(bench.config.window, (lm.anatomy.max_positions or 4096) - 1)
    cut = [ids[start : start + size] for start in range(0, len(ids), size)][: bench.config.limit]
    windows += [(f"{source} {place}", window) for place, window in enumerate(cut)]
    return source, [(title, window[:size]) for title, window in windows]


def _conditions(lm: LM) -> dict[str, bool]:
    """The tokenizer's own habit first, then the other one if there is a BOS."""
    own = encode(lm, [Text("a", "a")])[1]
    if lm.tokenizer is None or lm.tokenizer.bos_token_id is None:
        return {"without BOS (the model has none)": False}
    names = {True: "with BOS", False: "without BOS"}
    return {f"{names[own]} (the tokenizer's habit)": own, names[not own]: not own}


def _read(lm: LM, ids: list[int]) -> dict[str, Any]:
    """One window: the largest magnitudes and the median after each layer, and every massive entry. Read here, because
    the detector keeps the extremes of all windows together."""
    top: dict[int, list[float]] = {}
    medians: dict[int, float] = {}
    massive: list[list[Any]] = []

    def on_block(event: BlockOutput) -> None:
        hidden_TC = event.hidden_BTC[0]
        histogram = AbsHistogram()
        histogram.add(hidden_TC)
        size_TC = hidden_TC.abs().float()
        medians[event.layer] = histogram.median
        top[event.layer] = size_TC.flatten().topk(min(_TOP, size_TC.numel())).values.tolist()
        for position, dim in (size_TC > max(100.0, 1000.0 * histogram.median)).nonzero().tolist():
            massive.append([event.layer, dim, position, float(hidden_TC[position, dim])])

    with torch.no_grad(), tapped(lm, read={BlockOutput: [on_block]}):
        lm.model(input_ids=torch.tensor([ids], device=lm.device), use_cache=False)
    tokens = [token_text(lm, token) for token in ids]
    classes = [token_class(token, position) for position, token in enumerate(tokens)]
    layers = sorted(top)
    return {
        "top": [top[layer] for layer in layers],
        "median": [medians[layer] for layer in layers],
        "massive": massive,
        "tokens": dict(Counter(classes)),
        "holders": [[classes[position], tokens[position]] for position in {m[2] for m in massive}],
    }


def _stacked(windows: _Windows, what: str) -> np.ndarray:
    """ "top" (windows, layers, ranks) or "median" (windows, layers); the embedding comes first."""
    return np.array([window[what] for window in windows])


def _size_table(seen: dict[str, _Windows], source: str) -> Table:
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


def _class_table(seen: dict[str, _Windows]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for label, windows in seen.items():
        for kind in _CLASSES:
            texts = [[text for own, text in window["holders"] if own == kind] for window in windows]
            total = np.array([window["tokens"].get(kind, 0) for window in windows], dtype=float)
            held, some = np.array([len(own) for own in texts], dtype=float), total > 0
            share = ratio_interval(held[some], total[some], what="windows") if some.any() else None
            often = Counter(text for own in texts for text in own).most_common(5)
            said = ", ".join(repr(text) for text, _ in often)
            rows.append((label, kind, int(total.sum()), int(held.sum()), share, said))
    return Table(
        title="tokens that hold a massive activation, by class",
        columns=("prompts", "class", "tokens", "that hold one", "share", "most often"),
        rows=tuple(rows),
        note="In any layer. Shares are of the class, over windows. Windows of the corpus begin in mid-text.",
    )


def _dims(windows: _Windows) -> Counter[int]:
    """In how many windows each dim is massive."""
    return Counter(dim for window in windows for dim in {entry[1] for entry in window["massive"]})


def _dim_table(seen: dict[str, _Windows]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for label, windows in seen.items():
        for dim, having in _dims(windows).most_common(6):
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


def _layer_table(label: str, windows: _Windows) -> Table:
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


def _span(windows: _Windows) -> tuple[int, int] | None:
    """The first and the last layer after which some window has a massive activation."""
    layers = [entry[0] for window in windows for entry in window["massive"]]
    return (min(layers), max(layers)) if layers else None


def _note(label: str, windows: _Windows) -> str:
    span = _span(windows)
    if span is None:
        ratio = max(t[0] / m for w in windows for t, m in zip(w["top"], w["median"], strict=True) if m)
        return f"{label}: no activation is massive; the largest is {number(ratio)} times its layer's median."
    having = sum(bool(window["massive"]) for window in windows)
    kinds = Counter(kind for window in windows for kind, _ in window["holders"])
    classes = ", ".join(f"{number(n)} {kind}" for kind, n in kinds.most_common())
    always = [str(dim) for dim, n in _dims(windows).items() if n == having]
    top_L = _stacked(windows, "top").mean(axis=0)[:, 0]
    grows = f"; there the largest |a| goes from {number(top_L[span[0]])} to {number(top_L[span[0] + 1])}"
    return (
        f"{label}: {having} of {count(len(windows), 'window')} hold massive activations, first after layer {span[0]} "
        f"and last after layer {span[1]} of {len(top_L) - 2}{grows if span[0] >= 0 else ''}. In all of those windows: "
        f"dim {', '.join(always) or 'none'}. Tokens that hold one, by class: {classes}."
    )


def _plot(label: str, windows: _Windows) -> Plot:
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
    return Plot(kind="lines", series=series, title=label, x=below, log=True, shaded=shaded)

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
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.models import LM
from studfinder.records import Cell, Interval, Result, Table
from studfinder.report.style import BLUE, GREEN, GREY, INK, ORANGE, VERMILLION, log_ticks, new_figure
from studfinder.report.words import count, number
from studfinder.sites import BlockOutput, tapped
from studfinder.stats import AbsHistogram, mean_interval, ratio_interval
from studfinder.texts import WHOLE, Text, corpus, default_prompts, encode, token_class, token_text

EXPERIMENT = Experiment(
    name="massive-activations/where",
    paper="2402.17762",
    shows="figures 1 to 4 and table 1",
    summary="Where are massive activations: which layers, dims and tokens, with and without BOS?",
    needs="about 1 minute and 1 GB with smollm2 on two cores",
    presets={
        "cpu": {"limit": 10, "window": 512, "text": "c4"},
        "paper": {"limit": 10, "window": 4096, "text": "c4"},
    },
)
_TOP = 5
_CLASSES = ("first", "delimiter", "low-semantic", "other")


def run(bench: Bench) -> Outcome:
    """Read the residual stream of every window with and without BOS."""
    outcome = Outcome([])
    for name in bench.models:
        with bench.model(name) as lm:
            source, windows = _windows(bench, lm)
            conditions = _conditions(lm)
            total = len(conditions) * len(windows)
            seen: dict[str, list[dict[str, Any]]] = {}
            for label, bos in conditions.items():
                seen[label] = []
                for place, (title, ids) in enumerate(windows):
                    bench.progress(f"reading, {label}", len(seen) * len(windows) - len(windows) + place, total)
                    step = f"{label} {title}"
                    seen[label].append(bench.once(step, partial(_read, lm, _with_bos(lm, ids, bos))))
            bench.progress("read", total, total)
        _report(outcome, name, seen, source, next(iter(conditions)))
    return outcome


def _windows(bench: Bench, lm: LM) -> tuple[str, list[tuple[str, list[int]]]]:
    """Our prompts and windows of the text, by name, as token ids without BOS."""
    bos = None if lm.tokenizer is None or lm.tokenizer.bos_token_id is None else False
    prompts = default_prompts()
    windows = list(zip([p.name for p in prompts], encode(lm, prompts, bos=bos)[0], strict=True))
    source, documents = corpus(bench.settings["text"])
    joined = "\n\n".join(documents)
    ids = encode(lm, [Text(source, joined)], bos=bos, limit=WHOLE)[0][0]
    size = min(bench.settings["window"], (lm.anatomy.max_positions or 4096) - 1)
    cut = [ids[start : start + size] for start in range(0, len(ids), size)][: bench.settings["limit"]]
    windows += [(f"{source} {place}", window) for place, window in enumerate(cut)]
    return source, [(title, window[:size]) for title, window in windows]


def _conditions(lm: LM) -> dict[str, bool]:
    """The tokenizer's own habit first, then the other one if there is a BOS."""
    own = encode(lm, [Text("a", "a")])[1]
    if lm.tokenizer is None or lm.tokenizer.bos_token_id is None:
        return {"without BOS (the model has none)": False}
    names = {True: "with BOS", False: "without BOS"}
    return {f"{names[own]} (the tokenizer's habit)": own, names[not own]: not own}


def _with_bos(lm: LM, ids: list[int], bos: bool) -> list[int]:
    return [lm.tokenizer.bos_token_id, *ids] if bos and lm.tokenizer is not None else ids


def _read(lm: LM, ids: list[int]) -> dict[str, Any]:
    """One window: the largest magnitudes and the median after each layer, and every massive entry."""
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
        "holders": {str(position): [classes[position], tokens[position]] for position in {m[2] for m in massive}},
    }


def _report(outcome: Outcome, name: str, seen: dict[str, list[dict[str, Any]]], source: str, own: str) -> None:
    outcome.tables.append(_size_table(name, seen, source))
    outcome.tables.append(_class_table(name, seen))
    outcome.tables.append(_dim_table(name, seen))
    outcome.tables.append(_layer_table(name, own, seen[own]))
    outcome.notes += [_note(name, label, windows) for label, windows in seen.items()]
    outcome.data[name] = {
        label: {
            "top": np.mean([window["top"] for window in windows], axis=0).tolist(),
            "median": np.mean([window["median"] for window in windows], axis=0).tolist(),
            "span": _span(windows),
        }
        for label, windows in seen.items()
    }


def _span(windows: Sequence[dict[str, Any]]) -> list[int] | None:
    """The first and the last layer after which some window has a massive activation."""
    layers = [entry[0] for window in windows for entry in window["massive"]]
    return [min(layers), max(layers)] if layers else None


def _size_table(name: str, seen: dict[str, list[dict[str, Any]]], source: str) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for label, windows in seen.items():
        top = np.array([window["top"] for window in windows])  # (windows, layers, top)
        layer = int(top[:, :, 0].mean(axis=0).argmax())
        median = mean_interval([window["median"][layer] for window in windows], what="windows")
        sizes = [mean_interval(top[:, layer, rank], what="windows") for rank in range(top.shape[2])]
        rows.append((label, layer - 1, *sizes, median))
    columns = ("prompts", "layer", *(f"top {rank + 1}" for rank in range(len(rows[0]) - 3)), "median")
    return Table(
        title=f"{name}: largest |a| after the layer where they are largest",
        columns=columns,
        rows=tuple(rows),
        note=f"Mean over {count(len(next(iter(seen.values()))), 'window')}: our prompts and {source}. The paper, "
        "without BOS: LLaMA2-7B 2622, 1547, 802, 477.3, 156.9, median 0.2; "
        "LLaMA2-13B 1264, 781, 51, 50.5, 47.1, median 0.4.",
    )


def _class_table(name: str, seen: dict[str, list[dict[str, Any]]]) -> Table:
    rows = []
    for label, windows in seen.items():
        for kind in _CLASSES:
            total = np.array([window["tokens"].get(kind, 0) for window in windows], dtype=float)
            held = np.array([sum(h[0] == kind for h in window["holders"].values()) for window in windows], dtype=float)
            share = _share(held, total)
            texts = Counter(h[1] for window in windows for h in window["holders"].values() if h[0] == kind)
            often = ", ".join(repr(text) for text, _ in texts.most_common(5))
            rows.append((label, kind, int(total.sum()), int(held.sum()), share, often))
    return Table(
        title=f"{name}: tokens that hold a massive activation, by class",
        columns=("prompts", "class", "tokens", "that hold one", "share", "most often"),
        rows=tuple(rows),
        note="In any layer. Shares are of the class, over windows. Windows of the corpus begin in mid-text.",
    )


def _share(held: np.ndarray, total: np.ndarray) -> Interval | None:
    some = total > 0
    return ratio_interval(held[some], total[some], what="windows") if some.any() else None


def _dim_table(name: str, seen: dict[str, list[dict[str, Any]]]) -> Table:
    rows = []
    for label, windows in seen.items():
        by_dim = Counter(dim for window in windows for dim in {entry[1] for entry in window["massive"]})
        for dim, having in by_dim.most_common(6):
            entries = [entry for window in windows for entry in window["massive"] if entry[1] == dim]
            layers = [entry[0] for entry in entries]
            # One value a token: its largest over the layers.
            largest: dict[tuple[int, int], float] = {}
            for number_, window in enumerate(windows):
                for _, own, position, value in window["massive"]:
                    if own == dim and abs(value) > abs(largest.get((number_, position), 0.0)):
                        largest[number_, position] = value
            values = np.array(list(largest.values()))
            spread = float(values.std() / abs(values.mean())) if len(values) > 1 and values.mean() else None
            rows.append((label, dim, having / len(windows), min(layers), max(layers), float(values.mean()), spread))
    return Table(
        title=f"{name}: the dims",
        columns=(
            "prompts",
            "dim",
            "share of windows",
            "first after layer",
            "last after layer",
            "mean",
            "spread / |mean|",
        ),
        rows=tuple(rows),
        note="The six dims found in most windows. Mean and spread (standard deviation) over tokens, each at the layer "
        "where it is largest. The paper: the same dims everywhere, e.g. 1415 and 2533 in LLaMA2-7B.",
    )


def _layer_table(name: str, label: str, windows: list[dict[str, Any]]) -> Table:
    top = np.array([window["top"] for window in windows])
    rows = []
    for place in range(top.shape[1]):
        having = float(np.mean([any(entry[0] == place - 1 for entry in window["massive"]) for window in windows]))
        largest = mean_interval(top[:, place, 0], what="windows")
        rest = top[:, place, 1:3].mean(axis=0).tolist()
        median = float(np.mean([window["median"][place] for window in windows]))
        rows.append(("embedding" if place == 0 else str(place - 1), largest, *rest, median, having))
    heads = ("after layer", "largest", "second", "third")[: 2 + min(2, top.shape[2] - 1)]
    return Table(
        title=f"{name}: by layer, {label}",
        columns=(*heads, "median", "share of windows with a massive activation"),
        rows=tuple(rows),
        note="Means over windows of |a| in the residual stream.",
    )


def _note(name: str, label: str, windows: list[dict[str, Any]]) -> str:
    span = _span(windows)
    if span is None:
        ratio = max(t[0] / m for w in windows for t, m in zip(w["top"], w["median"], strict=True) if m)
        return f"{name}, {label}: no activation is massive; the largest is {number(ratio)} times its layer's median."
    having = sum(bool(window["massive"]) for window in windows)
    dims = Counter(dim for window in windows for dim in {entry[1] for entry in window["massive"]})
    kinds = Counter(holder[0] for window in windows for holder in window["holders"].values())
    classes = ", ".join(f"{number(n)} {kind}" for kind, n in kinds.most_common())
    always = [str(dim) for dim, n in dims.items() if n == having]
    top = np.mean([window["top"] for window in windows], axis=0)[:, 0]
    grows = f"; there the largest |a| goes from {number(top[span[0]])} to {number(top[span[0] + 1])}"
    return (
        f"{name}, {label}: {having} of {count(len(windows), 'window')} hold massive activations, first after layer "
        f"{span[0]} and last after layer {span[1]} of {len(top) - 2}"
        f"{grows if span[0] >= 0 else ''}. In all of those windows: dim "
        f"{', '.join(always) or 'none'}. Tokens that hold one, by class: {classes}."
    )


def draw(result: Result, width: float) -> dict[str, Figure]:
    """The three largest magnitudes and the median by layer; a panel with BOS and one without."""
    figures = {}
    wide = width > 600
    for place, (name, seen) in enumerate(result.data.items()):
        figure = new_figure(width, 380 if wide else 330 * len(seen))
        panels = figure.subplots(*((1, len(seen)) if wide else (len(seen), 1)), squeeze=False, sharey=True).flat
        for axes, (label, found) in zip(panels, seen.items(), strict=True):
            top, x = np.array(found["top"]), np.arange(len(found["top"])) - 1
            for rank, colour, text in ((0, VERMILLION, "largest |a|"), (1, BLUE, "second"), (2, GREEN, "third")):
                if rank < top.shape[1]:
                    axes.plot(x, top[:, rank], color=colour, linewidth=2, label=text)
            axes.plot(x, found["median"], color=GREY, linewidth=2, label="median |a|")
            rule = np.maximum(100, 1000 * np.array(found["median"]))
            axes.step(x, rule, where="mid", color=INK, linewidth=1, linestyle=(0, (4, 3)), label="massive above this")
            if found["span"]:
                axes.axvspan(found["span"][0] - 0.5, found["span"][1] + 0.5, color=ORANGE, alpha=0.13, linewidth=0)
            axes.set(yscale="log", title=label, xlabel=f"after layer ({name})")
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
            axes.grid(axis="y")
        log_ticks(figure.axes[0].yaxis)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=5 if wide else 2)
        figures["layers" if not place else f"layers-{place + 1}"] = figure
    return figures

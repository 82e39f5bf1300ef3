"""What single numbers do: a weight, all of them, a neuron, a channel, each beside a control of the same kind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from studfinder.edits import Edit, Weights, channel, edits_hash, matched_controls, neuron, top_fraction, zero
from studfinder.experiments.dots import dots, point
from studfinder.experiments.experiment import Bench, Outcome
from studfinder.measures import sweep
from studfinder.models import LM, matrix
from studfinder.records import Findings, Interval, SuperWeight, Table, from_json, to_plain
from studfinder.report.style import log_ticks, new_figure
from studfinder.report.words import brief
from studfinder.texts import encode, proof_text


def count_of(targets: Sequence[Weights]) -> int:
    """How many weights these are."""
    return sum(len(target.entries) for target in targets)


def measure_units(
    bench: Bench, lm: LM, weights: Sequence[SuperWeight], findings: Findings, others: Sequence[Weights]
) -> list[dict[str, Any]]:
    """Each edit by itself on the proof text: label, what its control is to it, KL and perplexity ratio."""
    named = _unit_edits(lm, weights, findings, others)
    windows, _ = encode(lm, proof_text())
    windows = windows[: bench.settings["windows"]]

    done = 0

    def progress(pairs: int) -> None:
        nonlocal done
        done += pairs
        bench.progress("one edit at a time", done, len(named))

    effects = sweep(lm, windows, [edits for _, edits in named], progress=progress)
    return [
        {
            "label": label,
            "edits": edits_hash(edits),
            "kl": to_plain(effects.kl_interval(place)),
            "ratio": to_plain(effects.perplexity_ratio(place)),
        }
        for place, (label, edits) in enumerate(named)
    ]


def _unit_edits(
    lm: LM, weights: Sequence[SuperWeight], findings: Findings, others: Sequence[Weights]
) -> list[tuple[str, tuple[Edit, ...]]]:
    taken = [weight.index for weight in weights]
    matched = [matched_controls(lm, w, findings, count=2, exclude=taken) for w in weights]
    named: list[tuple[str, tuple[Edit, ...]]] = []
    for weight, (size, contribution) in zip(weights, matched, strict=True):
        named.append((f"{brief(weight)} alone", zero(weight)))
        named.append(("  control: nearest in size", zero(size)))
        named.append(("  control: nearest in contribution", zero(contribution)))
    if len(weights) > 1:
        named.append(("all together", zero(weights)))
        named.append(("  control: their controls together", zero([pair[1] for pair in matched])))
    first = weights[0]
    writers = [ref.parameter for ref in lm.anatomy.layers[first.layer].writers]
    writer = first.expert if first.expert is not None else writers.index(first.parameter)
    row, col = _nearest(lm, first, writer, axis=1), _nearest(lm, first, writer, axis=0)
    named.append((f"neuron {first.col} of layer {first.layer}", zero(neuron(lm, first.layer, first.col, writer))))
    named.append((f"  control: neuron {col}", zero(neuron(lm, first.layer, col, writer))))
    named.append((f"channel {first.row} of layer {first.layer}", zero(channel(lm, first.layer, first.row, writer))))
    named.append((f"  control: channel {row}", zero(channel(lm, first.layer, row, writer))))
    # 7,000 weights are a millionth of Llama-7B's; on a small model the same share is far fewer.
    few = top_fraction(lm, 1e-6, keep={(weight.parameter, weight.index) for weight in weights})
    named.append((f"the {count_of(few):,} largest others", zero(few)))
    named.append((f"the {count_of(others):,} largest others", zero(others)))
    return named


def _nearest(lm: LM, weight: SuperWeight, writer: int, axis: int) -> int:
    """The other row (axis 1) or column (axis 0) of the matrix whose norm is nearest the super weight's own."""
    ref = lm.anatomy.layers[weight.layer].writers[writer]
    with matrix(lm, ref) as weight_CF:
        assert weight_CF is not None
        norms = weight_CF.float().norm(dim=axis)
    own = weight.row if axis == 1 else weight.col
    distance = (norms - norms[own]).abs()
    distance[own] = float("inf")
    return int(distance.argmin())


def add_units(outcome: Outcome, name: str, units: list[dict[str, Any]]) -> None:
    """A table, a figure's data and a sentence."""
    kls = [from_json(Interval, json.dumps(unit["kl"])) for unit in units]
    ratios = [from_json(Interval, json.dumps(unit["ratio"])) for unit in units]
    outcome.tables.append(
        Table(
            title=f"{name}: one edit at a time",
            columns=("set to zero", "KL in nats per token", "perplexity / original"),
            rows=tuple((unit["label"], kl, ratio) for unit, kl, ratio in zip(units, kls, ratios, strict=True)),
            note="On our proof text; intervals over its windows. A control stands under what it controls for.",
        )
    )
    outcome.data["models"][name]["units"] = [
        [unit["label"], point(ratio)] for unit, ratio in zip(units, ratios, strict=True)
    ]
    beaten = [u["label"] for u, k in zip(units, kls, strict=True) if not u["label"].startswith(" ") and k.low > 0.01]
    loud = [u["label"].strip() for u, k in zip(units, kls, strict=True) if u["label"].startswith(" ") and k.low > 0.01]
    outcome.notes.append(
        f"{name}: taken alone on our proof text, these move the model by more than 0.01 nats per token: "
        f"{', '.join(beaten) or 'none'}; of the controls: {', '.join(loud) or 'none'}."
    )


def draw_units(name: str, units: list[Any], width: float) -> Figure:
    """A row an edit, its control under it."""
    figure = new_figure(width, 70 + 26 * len(units))
    axes = figure.add_subplot()
    labels = [label for label, _ in units]
    nothing = [float("nan")] * 3
    series = {
        "set to zero": [nothing if label.startswith(" ") else at for label, at in units],
        "its control": [at if label.startswith(" ") else nothing for label, at in units],
    }
    shown = [label.strip() if width > 600 else label.strip().removeprefix("control: ") for label in labels]
    dots(axes, shown, series, none=1.0, log=True)
    axes.set_xlabel(f"perplexity / original, proof text ({name})" if width > 600 else "perplexity / original")
    log_ticks(axes.xaxis, most=5)
    figure.legend(loc="outside upper left", ncols=2)
    return figure

"""Tables and notes of outlier-free/finetune. Every interval is over test windows of one training run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from studfinder.experiments.w8a8 import STATIC, W8A8_CAVEAT, WAYS
from studfinder.records import Cell, Comparison, Interval, Table
from studfinder.stats import mean_interval, ratio_interval

UNTRAINED, PLAIN, DECAYED, OTHER = "untrained", "plain", "super weight decayed", "other weight decayed"

Items = Sequence[float] | np.ndarray
"""One number a test window."""


def states(seen: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The untrained model and every arm that was trained, by name."""
    return {UNTRAINED: seen["untrained"], **{k: v for k, v in seen["arms"].items() if "skipped" not in v}}


def window_mean(items: Items) -> Interval:
    """Over windows; a single one has no interval (its ends are NaN), and nothing is said to have changed by it."""
    if len(items) == 1:
        nan = float("nan")
        return Interval(value=float(items[0]), low=nan, high=nan, level=0.95, n=1, method="one test window")
    return mean_interval(items, what="test windows")


def window_change(after: Items, before: Items) -> Interval:
    """Mean difference, paired within windows."""
    return window_mean(np.asarray(after) - np.asarray(before))


def gap(state: dict[str, Any], way: str) -> np.ndarray:
    """What eight bits cost, nats a token, one number a window."""
    return np.asarray(state["eight bits"][way]) - np.asarray(state["loss"])


def place(outliers: dict[str, float]) -> str:
    """Where the largest activation is."""
    layer, dim, position = (int(outliers[f"top_{axis}"]) for axis in ("layer", "dim", "position"))
    return f"layer {layer}, dim {dim}, token {position}"


def tables_of(name: str, seen: dict[str, Any]) -> list[Table]:
    """Loss, outliers, need and eight bits."""
    tables = [_losses(name, seen), _outliers(name, seen), _eight_bits(name, seen)]
    return [*tables[:2], _need(name, seen), tables[2]] if seen["weights"] else tables


def _losses(name: str, seen: dict[str, Any]) -> Table:
    found = states(seen)
    before, plain = found[UNTRAINED], found.get(PLAIN)
    rows: list[tuple[Cell, ...]] = [
        _loss_row(label, state, state["loss"], before, plain) for label, state in found.items()
    ]
    if seen["weights"]:
        rows.insert(1, _loss_row("untrained, without its super weight", before, before["super"]["loss"], before, plain))
    return Table(
        title=f"{name}: test loss, nats a token",
        columns=("training", "test loss", "minus untrained", "minus plain training", "super weight"),
        rows=tuple(rows),
        note="Differences are paired over test windows, 95 %. The last column is the largest super weight's value.",
    )


def _loss_row(
    label: str, state: dict[str, Any], loss: Items, before: dict[str, Any], plain: dict[str, Any] | None
) -> tuple[Cell, ...]:
    without = label != UNTRAINED and loss is not state["loss"]
    values = state["values"].get("super")
    return (
        label,
        window_mean(loss),
        None if loss is before["loss"] else _difference(loss, before["loss"]),
        None if plain is None or loss is plain["loss"] else _difference(loss, plain["loss"]),
        None if values is None else 0.0 if without else values[0],
    )


def _difference(after: Items, before: Items) -> Comparison:
    return Comparison(kind="difference", interval=window_change(after, before))


def _outliers(name: str, seen: dict[str, Any]) -> Table:
    columns = {
        "top_activation": "largest activation",
        "top_ratio": "over its layer's median",
        "massive_activations": "massive activations",
        "inf_norm": "inf norm",
        "kurtosis": "kurtosis",
        "top_sink": "largest attention to the first token",
        "sink_share": "heads that are sinks",
    }
    rows = tuple(
        (
            label,
            place(state["outliers"]),
            *(state["outliers"].get(key) for key in columns),
        )
        for label, state in states(seen).items()
    )
    return Table(
        title=f"{name}: outliers",
        columns=("training", "where the largest is", *columns.values()),
        rows=rows,
        note="Read on the watched test windows; single numbers, without an interval.",
    )


def _need(name: str, seen: dict[str, Any]) -> Table:
    found = states(seen)
    before = found[UNTRAINED]["super"]["kl"]
    rows = []
    for label, state in found.items():
        rise = np.asarray(state["super"]["loss"]) - np.asarray(state["loss"])
        ratio = ratio_interval(rise, np.ones(len(rise)), exponential=True, what="test windows")
        rows.append(
            (
                label,
                window_mean(state["super"]["kl"]),
                Comparison(kind="ratio", interval=ratio),
                None if label == UNTRAINED else _difference(state["super"]["kl"], before),
                window_mean(state["control"]["kl"]),
            )
        )
    return Table(
        title=f"{name}: the need for {' and '.join(seen['weights'])}",
        columns=("training", "KL without it", "perplexity without it", "KL minus untrained", "KL without a control"),
        rows=tuple(rows),
        note="KL(model || model with the weight set to zero), nats a token. The control is the weight of the same "
        "matrix nearest in size. A weight that training has brought to zero has a need of 0 by construction.",
    )


def _eight_bits(name: str, seen: dict[str, Any]) -> Table:
    found = states(seen)
    rows = tuple(
        (
            label,
            *(window_mean(gap(state, way)) for way in WAYS),
            None if label == UNTRAINED else _difference(gap(state, STATIC), gap(found[UNTRAINED], STATIC)),
        )
        for label, state in found.items()
    )
    return Table(
        title=f"{name}: what eight bits cost, nats a token",
        columns=(
            "training",
            *(way if way == "weights only" else f"W8A8 {way}" for way in WAYS),
            f"{STATIC} minus untrained",
        ),
        rows=rows,
        note=f"Test loss in eight bits minus test loss, paired. {W8A8_CAVEAT}",
    )


def finetune_notes(name: str, seen: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """What the numbers say; every sentence depends on its interval."""
    found = states(seen)
    notes = [_size(name, seen, settings)]
    if not seen["weights"]:
        notes.append(
            f"{name}: no super weight is proven in this model, so the arms that freeze or decay one were left out, and "
            "no need is measured."
        )
    notes += [
        f"{name}: the arm {label} was left out. {arm['skipped']}"
        for label, arm in seen["arms"].items()
        if "skipped" in arm
    ]
    if seen["weights"]:
        kept = {label: state for label, state in found.items() if label != DECAYED}
        notes.append(f"{name}, the need for the super weight (KL without it): {_answer(kept, _need_of)}")
    notes.append(f"{name}, what W8A8 {STATIC} costs: {_answer(found, partial(gap, way=STATIC))}")
    notes += [f"{name}, {label}: {_arm(label, found)}" for label in found if label != UNTRAINED]
    if DECAYED in found and PLAIN in found:
        notes.append(_won_back(name, found))
    return notes


def _need_of(state: dict[str, Any]) -> np.ndarray:
    return np.asarray(state["super"]["kl"])


def _answer(found: dict[str, dict[str, Any]], items: Callable[[dict[str, Any]], np.ndarray]) -> str:
    """In which arms something fell, and in which it fell below plain training."""
    before = items(found[UNTRAINED])
    fell = [label for label, state in found.items() if window_change(items(state), before).high < 0]
    says = f"{window_mean(before)} before; an interval shows it lower after training in {_listed(fell)}"
    if PLAIN in found:
        plain = items(found[PLAIN])
        below = [
            label
            for label, state in found.items()
            if label != UNTRAINED and window_change(items(state), plain).high < 0
        ]
        says += f", and lower than after plain training in {_listed(below)}"
    return says + "."


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(labels) if labels else "no arm"


def _arm(label: str, found: dict[str, dict[str, Any]]) -> str:
    """One arm against the untrained model and plain training."""
    state, before = found[label], found[UNTRAINED]
    plain = None if label == PLAIN else found.get(PLAIN)
    loss = f"test loss {_said(window_change(state['loss'], before['loss']))} against the untrained model"
    if plain is not None:
        loss += f", {_said(window_change(state['loss'], plain['loss']))} against plain"
    parts = [loss, _grown(before["outliers"], state["outliers"])]
    if "super" in before and label != DECAYED:
        parts.append(f"need {_said(window_change(_need_of(state), _need_of(before)))}")
    parts.append(f"cost of W8A8 {STATIC} {_said(window_change(gap(state, STATIC), gap(before, STATIC)))}")
    return "; ".join(parts) + "."


def _said(interval: Interval) -> str:
    numbers = f"{interval.value:+.3g} [{interval.low:+.3g}, {interval.high:+.3g}]"
    if interval.low > 0:
        return f"higher by {numbers}"
    return f"lower by {numbers}" if interval.high < 0 else f"not shown to change ({numbers})"


def _grown(before: dict[str, float], after: dict[str, float]) -> str:
    return (
        f"largest activation {before['top_activation']:,.4g} ({place(before)}) to {after['top_activation']:,.4g} "
        f"({place(after)})"
    )


def _won_back(name: str, found: dict[str, dict[str, Any]]) -> str:
    before, plain, decayed = found[UNTRAINED], found[PLAIN], found[DECAYED]
    lost = window_change(before["super"]["loss"], before["loss"])
    left = window_change(decayed["loss"], plain["loss"])
    says = f"{name}: set to zero in the untrained model the super weight costs {lost} nats a token; "
    says += f"decayed to zero in training it leaves {left} against plain training"
    if lost.low > 0:
        share = ratio_interval(
            np.asarray(decayed["loss"]) - np.asarray(plain["loss"]),
            np.asarray(before["super"]["loss"]) - np.asarray(before["loss"]),
            what="test windows",
        )
        says += f", {share.value:.1%} [{share.low:.1%}, {share.high:.1%}] of that"
    if OTHER in found:
        says += f"; the control weight, decayed alike, leaves {window_change(found[OTHER]['loss'], plain['loss'])}"
    return says + "."


def _size(name: str, seen: dict[str, Any], s: dict[str, Any]) -> str:
    step = s["batch"] * s["length"]
    passes = s["steps"] * s["batch"] / seen["windows"]
    often = f", {passes:.2g} times over its training windows" if passes > 1 else ""
    return (
        f"{name}: {s['steps']:,} steps of {step:,} tokens ({s['steps'] * step:,} in all{often}) on {s['text']}, one "
        f"run an arm, learning rate {s['lr']:g}, {seen['precision']}. This shows what so short a training does at "
        "this rate; an outlier that stays may go with more tokens, and one seed says nothing of another. Test windows "
        "are of the same text, so a lower loss is in part the text's."
    )

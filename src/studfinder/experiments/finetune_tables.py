"""Tables, notes and charts of outlier-free/finetune. Every interval is over test windows of one training run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from studfinder.experiments.w8a8 import STATIC, W8A8_CAVEAT, WAYS
from studfinder.records import Chart, Comparison, Interval, Plot, Series, Table, point
from studfinder.stats import mean_interval, ratio_interval
from studfinder.studies.seeds import over

UNTRAINED, PLAIN, DECAYED, OTHER = "untrained", "plain", "super weight decayed", "other weight decayed"

Items = Sequence[float] | np.ndarray
"""One number a test window."""
_State = dict[str, Any]
"""What was measured of one model; see `outlier_free_finetune.measured`."""


def states(seen: dict[str, Any]) -> dict[str, _State]:
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


def _difference(after: Items, before: Items) -> Comparison:
    return Comparison(kind="difference", interval=window_change(after, before))


def gap(state: _State, way: str) -> np.ndarray:
    """What eight bits cost, nats a token, one number a window."""
    return np.asarray(state["eight bits"][way]) - np.asarray(state["loss"])


def _place(outliers: dict[str, float]) -> str:
    """Where the largest activation is."""
    layer, dim, position = (int(outliers[f"top_{axis}"]) for axis in ("layer", "dim", "position"))
    return f"layer {layer}, dim {dim}, token {position}"


# --- tables ---------------------------------------------------------------------------------------------------------


def tables_of(seen: dict[str, Any]) -> list[Table]:
    """Loss, outliers, need and eight bits."""
    return [_losses(seen), _outliers(seen), *([_need(seen)] if seen["weights"] else []), _eight_bits(seen)]


def _losses(seen: dict[str, Any]) -> Table:
    found = states(seen)
    before, plain = found[UNTRAINED]["loss"], found[PLAIN]["loss"] if PLAIN in found else None
    rows = [(label, state["loss"], state["values"].get("super", [None])[0]) for label, state in found.items()]
    if seen["weights"]:
        rows.insert(1, ("untrained, without its super weight", found[UNTRAINED]["super"]["loss"], 0.0))
    return Table(
        title="test loss, nats a token",
        columns=("training", "test loss", "minus untrained", "minus plain training", "super weight"),
        rows=tuple(
            (
                label,
                window_mean(loss),
                None if loss is before else _difference(loss, before),
                None if plain is None or loss is plain else _difference(loss, plain),
                value,
            )
            for label, loss, value in rows
        ),
        note="Differences are paired over test windows, 95 %. The last column is the largest super weight's value.",
    )


def _outliers(seen: dict[str, Any]) -> Table:
    columns = {
        "top_activation": "largest activation",
        "top_ratio": "over its layer's median",
        "massive_activations": "massive activations",
        "inf_norm": "inf norm",
        "kurtosis": "kurtosis",
        "top_sink": "largest attention to the first token",
        "sink_share": "heads that are sinks",
    }
    return Table(
        title="outliers",
        columns=("training", "where the largest is", *columns.values()),
        rows=tuple(
            (label, _place(state["outliers"]), *(state["outliers"].get(key) for key in columns))
            for label, state in states(seen).items()
        ),
        note="Read on the watched test windows; single numbers, without an interval.",
    )


def _need(seen: dict[str, Any]) -> Table:
    found = states(seen)
    rows = []
    for label, state in found.items():
        rise = np.asarray(state["super"]["loss"]) - np.asarray(state["loss"])
        ratio = ratio_interval(rise, np.ones(len(rise)), exponential=True, what="test windows")
        rows.append(
            (
                label,
                window_mean(_need_of(state)),
                Comparison(kind="ratio", interval=ratio),
                None if label == UNTRAINED else _difference(_need_of(state), _need_of(found[UNTRAINED])),
                window_mean(state["control"]["kl"]),
            )
        )
    return Table(
        title=f"the need for {' and '.join(seen['weights'])}",
        columns=("training", "KL without it", "perplexity without it", "KL minus untrained", "KL without a control"),
        rows=tuple(rows),
        note="KL(model || model with the weight set to zero), nats a token. The control is the weight of the same "
        "matrix nearest in size. A weight that training has brought to zero has a need of 0 by construction.",
    )


def _eight_bits(seen: dict[str, Any]) -> Table:
    found = states(seen)
    before = gap(found[UNTRAINED], STATIC)
    return Table(
        title="what eight bits cost, nats a token",
        columns=(
            "training",
            *(way if way == "weights only" else f"W8A8 {way}" for way in WAYS),
            f"{STATIC} minus untrained",
        ),
        rows=tuple(
            (
                label,
                *(window_mean(gap(state, way)) for way in WAYS),
                None if label == UNTRAINED else _difference(gap(state, STATIC), before),
            )
            for label, state in found.items()
        ),
        note=f"Test loss in eight bits minus test loss, paired. {W8A8_CAVEAT}",
    )


# --- sentences ------------------------------------------------------------------------------------------------------


def finetune_notes(seen: dict[str, Any]) -> list[str]:
    """What the numbers say; every sentence depends on its interval."""
    found = states(seen)
    notes = []
    if not seen["weights"]:
        notes.append(
            "no super weight is proven in this model, so the arms that freeze or decay one were left out, and no need "
            "is measured."
        )
    skipped = {label: arm["skipped"] for label, arm in seen["arms"].items() if "skipped" in arm}
    notes += [f"the arm {label} was left out. {why}" for label, why in skipped.items()]
    if seen["weights"]:
        kept = {label: state for label, state in found.items() if label != DECAYED}
        notes.append(f"the need for the super weight (KL without it): {_answer(kept, _need_of)}")
    notes.append(f"what W8A8 {STATIC} costs: {_answer(found, partial(gap, way=STATIC))}")
    notes += [f"{label}: {_arm(label, found)}" for label in found if label != UNTRAINED]
    if DECAYED in found and PLAIN in found:
        notes.append(_won_back(found))
    return notes


def _need_of(state: _State) -> np.ndarray:
    return np.asarray(state["super"]["kl"])


def _answer(found: dict[str, _State], items: Callable[[_State], np.ndarray]) -> str:
    """In which arms something fell, and in which it fell below plain training."""

    def lower(than: str) -> str:
        fell = [label for label, state in found.items() if window_change(items(state), items(found[than])).high < 0]
        return ", ".join(label for label in fell if label != UNTRAINED) or "no arm"

    says = f"{window_mean(items(found[UNTRAINED]))} before; an interval shows it lower after training in "
    says += lower(UNTRAINED)
    return says + (f", and lower than after plain training in {lower(PLAIN)}." if PLAIN in found else ".")


def _arm(label: str, found: dict[str, _State]) -> str:
    """One arm against the untrained model and plain training."""
    state, before = found[label], found[UNTRAINED]
    loss = f"test loss {_said(window_change(state['loss'], before['loss']))} against the untrained model"
    if label != PLAIN and PLAIN in found:
        loss += f", {_said(window_change(state['loss'], found[PLAIN]['loss']))} against plain"
    was, now = (f"{of['outliers']['top_activation']:,.4g} ({_place(of['outliers'])})" for of in (before, state))
    parts = [loss, f"largest activation {was} to {now}"]
    if "super" in before and label != DECAYED:
        parts.append(f"need {_said(window_change(_need_of(state), _need_of(before)))}")
    parts.append(f"cost of W8A8 {STATIC} {_said(window_change(gap(state, STATIC), gap(before, STATIC)))}")
    return "; ".join(parts) + "."


def _said(interval: Interval) -> str:
    if interval.low > 0:
        return f"higher by {interval:+.3g}"
    return f"lower by {interval:+.3g}" if interval.high < 0 else f"not shown to change ({interval:+.3g})"


def _won_back(found: dict[str, _State]) -> str:
    before, plain, decayed = found[UNTRAINED], found[PLAIN]["loss"], found[DECAYED]["loss"]
    lost = window_change(before["super"]["loss"], before["loss"])
    says = f"set to zero in the untrained model the super weight costs {lost} nats a token; decayed to zero in "
    says += f"training it leaves {window_change(decayed, plain)} against plain training"
    if lost.low > 0:
        cost = np.asarray(before["super"]["loss"]) - np.asarray(before["loss"])
        share = ratio_interval(np.asarray(decayed) - np.asarray(plain), cost, what="test windows")
        says += f", {share:.1%} of that"
    if OTHER in found:
        says += f"; the control weight, decayed alike, leaves {window_change(found[OTHER]['loss'], plain)}"
    return says + "."


# --- charts ---------------------------------------------------------------------------------------------------------


def charts_of(seen: dict[str, Any]) -> list[Chart]:
    """Over steps: the largest activation and the need; before and after: the need, and what eight bits cost."""
    found, before = states(seen), seen["untrained"]

    def lines(curve: str, start: float, **more: Any) -> Plot:
        """One line an arm, all from where the untrained model is."""
        arms = {label: state["curves"][curve] for label, state in found.items() if label != UNTRAINED}
        return over({label: [[(0, start), *points]] for label, points in arms.items() if points}, x="steps", **more)

    def dots(series: Mapping[str, Sequence[Items]], quiet: str, x: str) -> Plot:
        drawn = tuple(
            Series(name=name, points=tuple(point(window_mean(items)) for items in of), quiet=name == quiet)
            for name, of in series.items()
        )
        return Plot(kind="dots", rows=tuple(found), series=drawn, x=x, none=0.0)

    steps = [lines("top activation", before["outliers"]["top_activation"], y="largest |activation|", log=True)]
    bits = {way: [gap(state, way) for state in found.values()] for way in WAYS}
    after = [Chart(name="eight-bits", plots=(dots(bits, "weights only", "loss that eight bits add, nats a token"),))]
    if seen["weights"]:
        start = window_mean(before["super"]["kl"][: seen["watched"]]).value
        steps.append(lines("need", start, y="KL without the super weight, nats a token", low=0))
        groups = {"super": "the super weight", "control": "a control weight"}
        need = {name: [state[group]["kl"] for state in found.values()] for group, name in groups.items()}
        after.insert(0, Chart(name="need", plots=(dots(need, groups["control"], "KL without it, nats a token"),)))
    return [Chart(name="steps", plots=tuple(steps)), *after]

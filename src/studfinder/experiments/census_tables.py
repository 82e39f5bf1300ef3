"""What a census says once it is measured: tables, charts and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from studfinder.detectors.census import LEAST_DECADE
from studfinder.edits import Names
from studfinder.experiments.census_rankings import Spot, matrices_of_blocks
from studfinder.models import LM
from studfinder.models.kinds import kinds_of
from studfinder.records import Cell, Chart, Interval, Plot, Series, Table, point
from studfinder.stats import share_interval

FIRST_K = (10, 30, 100, 200)
"""How many of each order are looked at."""
PARTS = ("first third", "second third", "last third", "outside the layers")
ABOVE_NOISE = 1e-3
"""Nats of predicted KL from which predictions are held against measurements: fp32's own noise is far below."""
_KNOW = (
    "The census knows every number; |w|, |w| x input and impacts know matrices in blocks only, and spikes only down "
    "projections."
)
_CHOSEN = "Of the sample by decade and kind, and of the census's first; what other orders chose is not among them."
FROM = -10
"""The decades of predicted KL below this one are one row."""


def iceberg(lm: LM, decades: Mapping[str, Sequence[int]]) -> tuple[Table, Chart]:
    """How many numbers of each kind lie in each decade."""
    kinds = kinds_of(lm)
    named = sorted(set(kinds.values()))
    counts = {kind: np.sum([row for name, row in decades.items() if kinds[name] == kind], axis=0) for kind in named}
    low = FROM - LEAST_DECADE + 1
    rows: list[tuple[Cell, ...]] = []
    sums: list[int] = []
    for place in range(len(counts[named[0]]) - 1, low - 1, -1):
        each = [int(counts[kind][place]) for kind in named]
        if sum(each) or rows:
            sums.append(sum(each))
            rows.append((f"1e{place - 1 + LEAST_DECADE} to 1e{place + LEAST_DECADE}", *each, sum(each)))
    each = [int(counts[kind][:low].sum()) for kind in named]
    sums.append(sum(each))
    rows.append(("less", *each, sum(each)))
    note = "Predicted KL in nats per token of setting a number to zero. Tied parameters count once."
    columns = ("predicted", *named, "all")
    table = Table(title="how many numbers carry how much", columns=columns, rows=tuple(rows), note=note)
    plot = Plot(
        kind="bars",
        rows=tuple(str(row[0]) for row in rows),
        series=(Series(name="numbers", points=tuple(point(count or None) for count in sums)),),
        x="numbers of the model",
        y="predicted KL, nats per token",
        log=True,
    )
    return table, Chart(name="iceberg", plots=(plot,))


def carriers(
    lm: LM,
    predicted: Mapping[Spot, float],
    measured: Mapping[Spot, Interval],
    rankings: Mapping[str, Sequence[Spot]],
    threshold: float,
) -> Table:
    """All that carries more than the threshold, and as much else as makes 20, with its place in each order."""
    kinds, names, most = kinds_of(lm), Names(lm), max(20, len(_above(measured, threshold)))
    rows = []
    for spot in sorted(measured, key=lambda one: -measured[one].value)[:most]:
        places = [spots.index(spot) + 1 if spot in spots else None for spots in rankings.values()]
        rows.append((names.of(*spot), kinds[spot[0]], predicted.get(spot), measured[spot], *places))
    columns = ("number", "kind", "predicted KL", "KL in nats per token", *(f"place: {name}" for name in rankings))
    note = "Each at zero alone, on our proof text; intervals over its windows. Places from 1; our prompts chose."
    return Table(title="what carries most", columns=columns, rows=tuple(rows), note=note)


def recalls(
    lm: LM, measured: Mapping[Spot, Interval], rankings: Mapping[str, Sequence[Spot]], threshold: float
) -> list[Table]:
    """Of what was measured above the threshold, which share each order has in its first k: of all numbers, and of the
    matrices in the blocks, with the orders' other numbers passed over."""
    true, inside = _above(measured, threshold), set(matrices_of_blocks(lm))
    if not true:
        return []
    note = f"{len(true)} numbers were measured above {threshold:g} nats per token. Exact intervals at {FIRST_K[-1]}."
    tables = [_recall("what each order finds, of all numbers", true, rankings, f"{note} {_KNOW}")]
    own = {name: [spot for spot in spots if spot[0] in inside] for name, spots in rankings.items()}
    true = {spot for spot in true if spot[0] in inside}
    note = f"{len(true)} of them lie there. Numbers elsewhere are passed over in every order."
    return [
        *tables,
        *([_recall("what each order finds, of the matrices in the blocks", true, own, note)] if true else []),
    ]


def _recall(title: str, true: set[Spot], rankings: Mapping[str, Sequence[Spot]], note: str) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, spots in rankings.items():
        hits = [len(true & set(spots[:k])) for k in FIRST_K]
        last = share_interval(hits[-1], len(true), what="numbers")
        rows.append((name, *(count / len(true) for count in hits[:-1]), last))
    columns = ("order", *(f"in the first {k}" for k in FIRST_K))
    return Table(title=title, columns=columns, rows=tuple(rows), note=note)


def recalled(measured: Mapping[Spot, Interval], spots: Sequence[Spot], name: str, threshold: float) -> str:
    """The sentence about an order that is meant to find all."""
    true = _above(measured, threshold)
    if not true:
        return f"no number was measured above {threshold:g} nats per token."
    share = share_interval(len(true & set(spots[: FIRST_K[-1]])), len(true), what="numbers")
    return (
        f"of the {len(true)} numbers measured above {threshold:g} nats per token {share:.1%} stand among the first "
        f"{FIRST_K[-1]} of {name}."
    )


def _above(measured: Mapping[Spot, Interval], threshold: float) -> set[Spot]:
    return {spot for spot, kl in measured.items() if kl.value > threshold}


def errors(lm: LM, predicted: Mapping[Spot, float], measured: Mapping[Spot, Interval]) -> tuple[Table, Chart]:
    """Measured over predicted, by kind and decade of the prediction."""
    kinds = kinds_of(lm)
    cells: dict[tuple[str, int], list[float]] = {}
    for spot, kl in measured.items():
        if predicted.get(spot, 0.0) > 0:
            cells.setdefault((kinds[spot[0]], int(np.floor(np.log10(predicted[spot])))), []).append(kl.value)
    rows, series = [], []
    for kind in sorted({kind for kind, _ in cells}):
        line = []
        for decade in sorted(decade for own, decade in cells if own == kind):
            values = np.array(cells[kind, decade])
            low, middle, high = np.quantile(values, (0.1, 0.5, 0.9)).tolist()
            rows.append((kind, f"1e{decade} to 1e{decade + 1}", len(values), low, middle, high))
            line.append((10 ** (decade + 0.5), (middle, low, high)))
        series.append(Series(name=kind, x=tuple(x for x, _ in line), points=tuple(ends for _, ends in line)))
    columns = ("kind", "predicted", "numbers", "measured: 10 %", "median", "90 %")
    table = Table(
        title="predicted against measured", columns=columns, rows=tuple(rows), note=f"KL in nats per token. {_CHOSEN}"
    )
    plot = Plot(
        kind="lines",
        series=tuple(series),
        x="predicted KL, nats per token",
        y="measured KL: median and 10 to 90 %",
        log=True,
        log_x=True,
    )
    return table, Chart(name="predicted-measured", plots=(plot,))


def biases(lm: LM, predicted: Mapping[Spot, float], measured: Mapping[Spot, Interval]) -> Table:
    """Measured over predicted by kind, of what is predicted above fp32's own noise."""
    kinds = kinds_of(lm)
    ratios: dict[str, list[float]] = {}
    for spot, kl in measured.items():
        if predicted.get(spot, 0.0) >= ABOVE_NOISE:
            ratios.setdefault(kinds[spot[0]], []).append(kl.value / predicted[spot])
    rows: list[tuple[Cell, ...]] = [
        (kind, len(own), *np.quantile(own, (0.1, 0.5, 0.9)).tolist()) for kind, own in sorted(ratios.items())
    ]
    columns = ("kind", "numbers", "measured / predicted: 10 %", "median", "90 %")
    note = f"Numbers of which {ABOVE_NOISE:g} nats or more are predicted. {_CHOSEN}"
    return Table(title="by how much predictions err, by kind", columns=columns, rows=tuple(rows), note=note)


def where(lm: LM, measured: Mapping[Spot, Interval], totals: Mapping[str, float], threshold: float) -> list[Table]:
    """In which part of the depth, and of which kind, lies what carries more than the threshold, and what is predicted
    of all numbers together."""
    heavy = _by_place(lm, [(spot[0], 1) for spot in _above(measured, threshold)])
    whole = sum(totals.values())
    shares = _by_place(lm, [(name, 100 * kl / whole) for name, kl in totals.items()])
    title = f"where what carries more than {threshold:g} nats lies"
    rows: tuple[tuple[Cell, ...], ...] = tuple((kind, *map(int, row)) for kind, row in heavy.items())
    predicted = Table(
        title="where what is predicted lies",
        columns=("kind", *(f"{part}, %" for part in PARTS)),
        rows=tuple((kind, *row) for kind, row in shares.items()),
        note=f"Shares of the sum over all numbers of their predicted KL, {whole:.3g} nats.",
    )
    return [*([Table(title=title, columns=("kind", *PARTS), rows=rows)] if rows else []), predicted]


def early_down(lm: LM, measured: Mapping[Spot, Interval], threshold: float) -> list[str]:
    """Is it true that what carries most lies in early down projections?"""
    true = _above(measured, threshold)
    if not true:
        return []
    lying = _by_place(lm, [(spot[0], 1) for spot in true])
    share = share_interval(int(lying.get("down projection", [0])[0]), len(true), what="numbers")
    first = max(true, key=lambda spot: measured[spot].value)
    return [
        f"{share:.0%} of what was measured above {threshold:g} nats lies in down projections of the first third of the "
        f"layers; the first of all is {Names(lm).of(*first)}, {measured[first]} nats."
    ]


def _by_place(lm: LM, values: Sequence[tuple[str, float]]) -> dict[str, list[float]]:
    """Sums by kind and part of the depth of what is said of parameters by name."""
    kinds, depth = kinds_of(lm), len(lm.anatomy.layers)
    blocks = [layer.block + "." for layer in lm.anatomy.layers]
    sums: dict[str, list[float]] = {}
    for name, value in values:
        layer = next((number for number, block in enumerate(blocks) if name.startswith(block)), None)
        sums.setdefault(kinds[name], [0.0] * len(PARTS))[3 if layer is None else 3 * layer // depth] += value
    return dict(sorted(sums.items()))


def half_of(top: Sequence[float], totals: Mapping[str, float]) -> str:
    """How many numbers carry half of all that is predicted."""
    total, sums = sum(totals.values()), np.cumsum(sorted(top, reverse=True))
    count = int(np.searchsorted(sums, total / 2)) + 1
    many = f"{count:,}" if count <= len(top) else f"more than {len(top):,}"
    return f"half of what is predicted of all numbers together ({total:.3g} nats) is carried by {many} of them."

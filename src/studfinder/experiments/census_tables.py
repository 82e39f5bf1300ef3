"""What a census says once it is measured: tables, charts and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from studfinder.detectors.census import LEAST_DECADE
from studfinder.edits import Names
from studfinder.experiments.census_rankings import Spot
from studfinder.models import LM
from studfinder.models.kinds import kinds_of
from studfinder.records import Cell, Chart, Interval, Plot, Series, Table, point

FIRST_K = (10, 30, 100, 200)
"""How many of each order are looked at."""
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
    most: int = 40,
) -> Table:
    """What carries most of all that was measured, with its place in each order."""
    kinds, names = kinds_of(lm), Names(lm)
    rows = []
    for spot in sorted(measured, key=lambda one: -measured[one].value)[:most]:
        places = [spots.index(spot) + 1 if spot in spots else None for spots in rankings.values()]
        rows.append((names.of(*spot), kinds[spot[0]], predicted.get(spot), measured[spot], *places))
    columns = ("number", "kind", "predicted KL", "KL in nats per token", *(f"place: {name}" for name in rankings))
    note = "Each at zero alone, on our proof text; intervals over its windows. Places from 1; our prompts chose."
    return Table(title="what carries most", columns=columns, rows=tuple(rows), note=note)


def recalls(
    measured: Mapping[Spot, Interval], rankings: Mapping[str, Sequence[Spot]], threshold: float
) -> tuple[Table, int]:
    """Of what was measured above the threshold, which share each order has in its first k; and how much that is."""
    true = {spot for spot, kl in measured.items() if kl.value > threshold}
    rows = []
    for name, spots in rankings.items():
        shares = [len(true & set(spots[:k])) / len(true) if true else None for k in FIRST_K]
        rows.append((name, *shares))
    note = (
        f"{len(true)} numbers were measured above {threshold:g} nats per token. All kinds count; orders by |w| know "
        "matrices in blocks only, and spikes only down projections."
    )
    columns = ("order", *(f"in the first {k}" for k in FIRST_K))
    return Table(title="what each order finds", columns=columns, rows=tuple(rows), note=note), len(true)


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
    table = Table(title="predicted against measured", columns=columns, rows=tuple(rows), note="KL in nats per token.")
    plot = Plot(
        kind="lines",
        series=tuple(series),
        x="predicted KL, nats per token",
        y="measured KL: median and 10 to 90 %",
        log=True,
        log_x=True,
    )
    return table, Chart(name="predicted-measured", plots=(plot,))


def where(lm: LM, measured: Mapping[Spot, Interval], threshold: float) -> Table:
    """In which part of the depth, and of which kind, what carries more than the threshold lies."""
    kinds, depth = kinds_of(lm), len(lm.anatomy.layers)
    blocks = [layer.block + "." for layer in lm.anatomy.layers]
    parts = ("first third", "second third", "last third", "outside the layers")
    counts: dict[str, list[int]] = {}
    for spot, kl in measured.items():
        if kl.value > threshold:
            layer = next((n for n, block in enumerate(blocks) if spot[0].startswith(block)), None)
            row = counts.setdefault(kinds[spot[0]], [0] * 4)
            row[3 if layer is None else 3 * layer // depth] += 1
    rows: tuple[tuple[Cell, ...], ...] = tuple((kind, *row) for kind, row in sorted(counts.items()))
    title = f"where what carries more than {threshold:g} nats lies"
    return Table(title=title, columns=("kind", *parts), rows=rows)


def half_of(top: Sequence[float], totals: Mapping[str, float]) -> str:
    """How many numbers carry half of all that is predicted."""
    total, sums = sum(totals.values()), np.cumsum(sorted(top, reverse=True))
    count = int(np.searchsorted(sums, total / 2)) + 1
    many = f"{count:,}" if count <= len(top) else f"more than {len(top):,}"
    return f"half of what is predicted of all numbers together ({total:.3g} nats) is carried by {many} of them."

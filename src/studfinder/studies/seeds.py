"""What models trained at several seeds have in common: means, changes and tables over those that did not diverge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from studfinder.records import Chart, Interval, Plot, Series, Table, point
from studfinder.records.result import Cell

Trained = dict[str, Any]
"""What came of one model at one seed; see `trained.run_cell`."""
Cells = dict[str, list[Trained]]
"""By kind of model, one a seed."""
Curve = Sequence[tuple[float, float]]
Read = Callable[[Trained], float]
DIVERGED = "diverged"
FEW = 5
"""Kinds in a plot whose seeds' own curves can be told apart."""


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean over seeds with Student's interval; a single seed has none (its ends are NaN)."""
    from scipy.stats import t  # slow to load

    n, mean, half = len(values), float(np.mean(values)), float("nan")
    if n > 1:
        half = float(t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / n**0.5
    method = "Student's t over seeds" if n > 1 else "one seed"
    return Interval(value=mean, low=mean - half, high=mean + half, level=0.95, n=n, method=method)


def ended(seeds: Sequence[Trained]) -> list[Trained]:
    """Those whose training did not diverge."""
    return [cell for cell in seeds if not cell.get("stopped")]


def label_of(name: str, seeds: Sequence[Trained]) -> str:
    """The name of a kind of model, with how many seeds of it diverged if any did."""
    lost = len(seeds) - len(ended(seeds))
    return f"{name} ({lost} of {len(seeds)} seeds diverged)" if lost else name


def seed_mean(seeds: Sequence[Trained], read: Read) -> Interval | str | None:
    """Over the seeds that did not diverge; None where this kind of model has no such thing."""
    return _mean([read(cell) for cell in ended(seeds)])


def seed_change(after: Sequence[Trained], before: Sequence[Trained], read: Read) -> Interval | str | None:
    """Mean difference, paired over the seeds at which neither diverged."""
    return _mean([read(a) - read(b) for a, b in pairs(after, before)])


def _mean(values: list[float]) -> Interval | str | None:
    return DIVERGED if not values else None if np.isnan(values).all() else over_seeds(values)


def pairs(one: Sequence[Trained], other: Sequence[Trained]) -> list[tuple[Trained, Trained]]:
    """Two kinds at the same seeds, where neither diverged; one that has fewer seeds has the first ones."""
    return [(a, b) for a, b in zip(one, other, strict=False) if not (a.get("stopped") or b.get("stopped"))]


def last(cell: Trained, curve: str = "accuracy") -> float:
    """Where a curve ends; those within another name are named "outliers/...". NaN where nothing was read."""
    points = _points(cell, curve)
    return float(points[-1][1]) if points else float("nan")


def _points(cell: Trained, curve: str) -> Curve:
    kind, _, name = curve.rpartition("/")
    return (cell.get(kind, {}) if kind else cell).get(name, [])


def steps_to(cell: Trained, level: float, curve: str = "accuracy") -> float:
    """The first evaluation at which a curve reaches a level; inf if it never does."""
    return float(next((step for step, value in cell[curve] if value >= level), float("inf")))


def curves(
    cells: Cells, titles: Mapping[str, str], *, name: str = "steps", log: Sequence[str] = (), **more: Any
) -> Chart:
    """A plot for each curve ("outliers/..." of those within it): what it is over steps.

    Args:
        titles: what is plotted, by curve.
        log: the curves whose axis is logarithmic.
        more: of every plot.
    """
    plots = []
    for curve, title in titles.items():
        found = {label_of(one, seeds): [_points(cell, curve) for cell in ended(seeds)] for one, seeds in cells.items()}
        plots.append(over(found, y=title, x="steps", log=curve in log, percent=curve == "accuracy", **more))
    return Chart(name=name, plots=tuple(plots))


def over(found: Mapping[str, Sequence[Curve]], *, log: bool = False, **more: Any) -> Plot:
    """Lines through the means over seeds, by name one curve of (x, value) a seed, and, where there are few names, each
    seed's own curve."""
    series = []
    for name, seeds in found.items():
        values: dict[float, list[float]] = {}
        for x, value in (at for curve in seeds for at in curve):
            values.setdefault(x, []).extend([value] if np.isfinite(value) else [])
        means = {x: over_seeds(own) for x, own in sorted(values.items()) if own}
        series.append(Series(name=name, x=tuple(means), points=tuple(map(point, means.values()))))
        if len(found) <= FEW and len(seeds) > 1:
            own = [tuple(zip(*curve, strict=True)) for curve in seeds if len(curve) > 1]
            series += [Series(name=name, x=x, points=tuple(map(point, y)), thin=True) for x, y in own]
    seen = [value for one in series for value, *_ in one.points if value > 0]
    # Within a factor of three a log axis has no round number to show.
    return Plot(kind="lines", series=tuple(series), log=log and bool(seen) and max(seen) > 3 * min(seen), **more)


def ends_table(title: str, cells: Cells, columns: dict[str, str], first: str = "attention", note: str = "") -> Table:
    """Where curves end, over seeds: `columns` maps names of curves (or "outliers/...") to headings."""
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            label_of(name, seeds),
            seeds[0]["parameters"],
            *(seed_mean(seeds, partial(last, curve=curve)) for curve in columns),
        )
        for name, seeds in cells.items()
    )
    return Table(title=title, columns=(first, "parameters", *columns.values()), rows=rows, note=note)


def against(cells: Cells, plain: str, columns: dict[str, str]) -> list[str]:
    """What each kind changes against one of them, paired over seeds, in sentences."""
    notes = []
    for name, seeds in cells.items():
        if name == plain:
            continue
        if not pairs(seeds, cells[plain]):
            notes.append(f"{name} minus {plain}: at no seed did both end.")
            continue
        changes = {
            label: seed_change(seeds, cells[plain], partial(last, curve=curve)) for curve, label in columns.items()
        }
        said = "; ".join(f"{label} {found}" for label, found in changes.items() if found is not None)
        notes.append(f"{name} minus {plain}: {said}.")
    return notes


def about(cells: Cells) -> list[str]:
    """What a reader must know of any such run: which models diverged, and how long it took."""
    lost = [
        f"{name} in {len(steps)} of {len(seeds)} seeds (its loss was not finite at step {', '.join(map(str, steps))})"
        for name, seeds in cells.items()
        if (steps := [_end(cell) for cell in seeds if cell.get("stopped")])
    ]
    said = [f"Diverged, and left out of every mean, difference and line: {'; '.join(lost)}."] if lost else []
    every = [cell for seeds in cells.values() for cell in seeds]
    seconds, resumed = sum(cell["seconds"] for cell in every), sum("resumed" in cell for cell in every)
    took = f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"
    of = f" (of {resumed} that were interrupted, since then)" if resumed else ""
    return [*said, f"Training took {took} in all, of {len(every)} models{of}."]


def _end(cell: Trained) -> int:
    """The last step of which a loss was logged."""
    return int(cell["loss"][-1][0]) if cell.get("loss") else 0

"""What models trained at several seeds have in common: means, changes and tables over those that did not diverge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from studfinder.records import Interval, Table
from studfinder.records.result import Cell

Trained = dict[str, Any]
"""What came of one model at one seed; see `trained.run_cell`."""
Cells = dict[str, list[Trained]]
"""By kind of model, one a seed."""
Curve = list[tuple[int, float]]
Read = Callable[[Trained], float]
DIVERGED = "diverged"


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean over seeds with Student's interval; a single seed has none (its ends are NaN)."""
    from scipy.stats import t  # slow to load

    n = len(values)
    mean = float(np.mean(values))
    if n == 1:
        return Interval(value=mean, low=float("nan"), high=float("nan"), level=0.95, n=1, method="one seed")
    half = float(t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / n**0.5
    return Interval(value=mean, low=mean - half, high=mean + half, level=0.95, n=n, method="Student's t over seeds")


def ended(seeds: Sequence[Trained]) -> list[Trained]:
    """Those whose training did not diverge."""
    return [cell for cell in seeds if not cell.get("stopped")]


def label_of(name: str, seeds: Sequence[Trained]) -> str:
    """The name of a kind of model, with how many seeds of it diverged if any did."""
    lost = len(seeds) - len(ended(seeds))
    return f"{name} ({lost} of {len(seeds)} seeds diverged)" if lost else name


def seed_mean(seeds: Sequence[Trained], read: Read) -> Interval | str | None:
    """Over the seeds that did not diverge; None where this kind of model has no such thing."""
    values = [read(cell) for cell in ended(seeds)]
    if not values:
        return DIVERGED
    return None if all(np.isnan(value) for value in values) else over_seeds(values)


def seed_change(after: Sequence[Trained], before: Sequence[Trained], read: Read) -> Interval | str | None:
    """Mean difference, paired over the seeds at which neither diverged."""
    differences = [read(a) - read(b) for a, b in pairs(after, before)]
    if not differences:
        return DIVERGED
    return None if all(np.isnan(value) for value in differences) else over_seeds(differences)


def pairs(one: Sequence[Trained], other: Sequence[Trained]) -> list[tuple[Trained, Trained]]:
    """Two kinds at the same seeds, where neither diverged."""
    return [(a, b) for a, b in zip(one, other, strict=True) if not (a.get("stopped") or b.get("stopped"))]


def last(cell: Trained, curve: str = "accuracy") -> float:
    """Where a curve ends; those within another name are named "outliers/...". NaN where nothing was read."""
    kind, _, name = curve.rpartition("/")
    points = cell.get(kind, {}).get(name) if kind else cell.get(curve)
    return float(points[-1][1]) if points else float("nan")


def steps_to(cell: Trained, level: float, curve: str = "accuracy") -> float:
    """The first evaluation at which a curve reaches a level; inf if it never does."""
    return float(next((step for step, value in cell[curve] if value >= level), float("inf")))


def lines(cells: Cells, curve: str) -> dict[str, list[Curve]]:
    """The curves to draw, by name: those of the seeds that did not diverge, whose number the name says."""
    kind, _, name = curve.rpartition("/")
    return {
        label_of(model, seeds): [(cell.get(kind, {}) if kind else cell).get(name, []) for cell in ended(seeds)]
        for model, seeds in cells.items()
    }


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
    return [*said, _time(cells)]


def _time(cells: Cells) -> str:
    """Of all models together: a run that was drawn again knows its own seconds alone."""
    known = [cell["seconds"] for seeds in cells.values() for cell in seeds if "seconds" in cell]
    models = sum(map(len, cells.values()))
    seconds = sum(known)
    took = f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"
    missing = {
        "not known of {}": models - len(known),
        "of {} that were interrupted, since then": sum("resumed" in cell for seeds in cells.values() for cell in seeds),
    }
    said = "; ".join(words.format(count) for words, count in missing.items() if count)
    of = f" ({said})" if said else ""
    return f"Training took {took} in all, of {models} models{of}."


def _end(cell: Trained) -> int:
    """The last step of which a loss was logged."""
    return int(cell["loss"][-1][0]) if cell.get("loss") else 0

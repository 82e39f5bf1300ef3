"""What the training experiments share: one model trained at one seed, means over seeds, and their curves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from studfinder.experiments.experiment import Bench
from studfinder.records import Interval, Table
from studfinder.records.result import Cell
from studfinder.report.style import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILLION, log_ticks, new_figure
from studfinder.stats import student_t
from studfinder.training import Outliers, Recipe, Shape, build, fit, variants_from
from studfinder.training.streams import Source

COLOURS = (VERMILLION, BLUE, GREY, GREEN, PURPLE, ORANGE)

Curve = list[tuple[int, float]]


def run_cell(
    source: Source,
    vocabulary: int,
    shape: Shape,
    attention: Sequence[str],
    recipe: Recipe,
    *,
    watch: bool = False,
    callbacks: Sequence[Any] = (),
    finish: Callable[[Any], dict[str, Any]] = lambda model: {},
) -> dict[str, Any]:
    """Train one model from scratch; plain numbers of what came of it.

    Args:
        watch: look at outliers at each evaluation.
        finish: what else to measure of the trained model.
    """
    model = build(shape, variants_from(attention), vocabulary=vocabulary, length=source.length, seed=recipe.seed)
    outliers = Outliers(source)
    begun = time.monotonic()
    fitted = fit(model, source, recipe, callbacks=[*([outliers] if watch else []), *callbacks])
    if fitted.stopped == "interrupted":
        raise KeyboardInterrupt  # half a run is not remembered as a whole one
    return {
        "accuracy": fitted.curve("eval_accuracy"),
        "test": fitted.curve("eval_loss"),
        "loss": fitted.curve("loss"),
        "stopped": fitted.stopped,
        "parameters": sum(parameter.numel() for parameter in fitted.model.parameters()),
        "shift": shift_scalars(fitted.model),
        **finish(fitted.model),
        "seconds": round(time.monotonic() - begun, 1),
        "outliers": {
            name: [[step, look.summary[name]] for step, look in outliers.looks.items()] for name in _names(outliers)
        },
    }


def _names(outliers: Outliers) -> list[str]:
    return list(next(iter(outliers.looks.values())).summary) if outliers.looks else []


def shift_scalars(model: Any) -> list[list[float]]:
    """(a1, a2, b1, b2) of every key/value head with KV shift, in order; NaN for a side that is not shifted."""
    from studfinder.attention.kv_shift.layer import KVShiftPart

    found: list[list[float]] = []
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, KVShiftPart):
                count = len(next(part.parameters()))
                nothing = (torch.ones(count), torch.zeros(count))
                sides = [part.scalars(side) if side in part.sides else nothing for side in ("key", "value")]
                found += torch.stack([*sides[0], *sides[1]], dim=1).tolist()
    return found


def every_cell(
    bench: Bench, names: Sequence[str], seeds: int, cell: Callable[[str, int], dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Run (name, seed) for each, remembering what is done; the cells by name, one a seed."""
    cells: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    total = len(names) * seeds
    for seed in range(bench.settings["seed"], bench.settings["seed"] + seeds):
        for name in names:
            bench.progress(f"{name}, seed {seed}", sum(map(len, cells.values())), total)
            cells[name].append(bench.once(f"{name}/seed {seed}", partial(cell, name, seed)))
    return cells


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean over seeds with Student's interval; a single seed has none (its ends are NaN)."""
    n = len(values)
    mean = float(np.mean(values))
    if n == 1:
        return Interval(value=mean, low=float("nan"), high=float("nan"), level=0.95, n=1, method="one seed")
    half = student_t(n - 1) * float(np.std(values, ddof=1)) / n**0.5
    return Interval(value=mean, low=mean - half, high=mean + half, level=0.95, n=n, method="Student's t over seeds")


def last(cell: dict[str, Any], curve: str = "accuracy") -> float:
    """Where a curve ends; those within another name are named "outliers/...". NaN where nothing was read."""
    kind, _, name = curve.rpartition("/")
    points = cell[kind].get(name) if kind else cell[curve]
    return float(points[-1][1]) if points else float("nan")


def steps_to(cell: dict[str, Any], level: float, curve: str = "accuracy") -> float:
    """The first evaluation at which a curve reaches a level; inf if it never does."""
    return float(next((step for step, value in cell[curve] if value >= level), float("inf")))


def curves(
    figure: Figure,
    place: Any,
    cells: dict[str, list[Curve]],
    label: str,
    *,
    log: bool = False,
    low: float | None = None,
) -> Any:
    """Means over seeds as lines, with each seed's own curve thin behind it."""
    axes = figure.add_subplot(place)
    for number, (name, seeds) in enumerate(cells.items()):
        turn, colour = divmod(number, len(COLOURS))
        style: Any = {"color": COLOURS[colour], "linestyle": ("-", "--", ":")[turn]}
        steps = [step for step, _ in seeds[0]]
        values = np.array([[value for _, value in curve] for curve in seeds])
        for curve in values:
            axes.plot(steps, curve, linewidth=0.8, alpha=0.45, **style)
        axes.plot(steps, values.mean(axis=0), linewidth=2, label=name, **style)
    axes.set_xlabel("steps")
    axes.set_title(label, loc="left")  # beside the axis a long one would run into the panel above
    axes.grid(axis="y")
    seen = [value for seeds in cells.values() for curve in seeds for _, value in curve if value > 0]
    if log and max(seen) > 3 * min(seen):  # within a factor of three a log axis has no round number to show
        axes.set_yscale("log")
        log_ticks(axes.yaxis)
    if low is not None:
        axes.set_ylim(bottom=low)
    return axes


def one_panel(width: float, cells: dict[str, list[Curve]], label: str, **options: Any) -> Figure:
    """A figure of one panel of curves with its legend on top."""
    figure = new_figure(width, 330)
    curves(figure, 111, cells, label, **options)
    figure.legend(loc="outside upper left", ncols=3 if width > 600 else 1)
    return figure


def ends_table(
    title: str,
    cells: dict[str, list[dict[str, Any]]],
    columns: dict[str, str],
    first: str = "attention",
    note: str = "",
) -> Table:
    """Where curves end, over seeds: `columns` maps names of curves (or "outliers/...") to headings."""
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (name, seeds[0]["parameters"], *(_end(seeds, curve) for curve in columns)) for name, seeds in cells.items()
    )
    return Table(title=title, columns=(first, "parameters", *columns.values()), rows=rows, note=note)


def _end(seeds: list[dict[str, Any]], curve: str) -> Interval | None:
    """Where a curve ends, over seeds; None where this kind of attention has no such thing."""
    ends = [last(cell, curve) for cell in seeds]
    return None if all(np.isnan(end) for end in ends) else over_seeds(ends)


def against(cells: dict[str, list[dict[str, Any]]], plain: str, columns: dict[str, str]) -> list[str]:
    """What each kind changes against one of them, paired over seeds, in sentences."""
    notes = []
    for name, seeds in cells.items():
        if name != plain:
            pairs = list(zip(seeds, cells[plain], strict=True))
            said = [
                f"{label} {over_seeds([last(a, curve) - last(b, curve) for a, b in pairs])}"
                for curve, label in columns.items()
            ]
            notes.append(f"{name} minus {plain}: " + "; ".join(said) + ".")
    return notes


def recipe_of(settings: dict[str, Any], seed: int, precision: Any = "fp32") -> Recipe:
    """The recipe that an experiment's settings say."""
    names = ("steps", "batch", "lr", "warmup", "test", "look_every", "keep_every", "schedule")
    return Recipe(seed=seed, precision=precision, **{name: settings[name] for name in names if name in settings})

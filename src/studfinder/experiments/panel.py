"""What an ablation is judged by: perplexities and tasks, on the same items for every variant of a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from studfinder.edits import Edit, edited, edits_hash
from studfinder.errors import StudfinderError, WriteFailed
from studfinder.experiments.experiment import Bench
from studfinder.measures import Scores, compare, measure_named
from studfinder.measures.tasks import headroom_note
from studfinder.models import LM
from studfinder.records import Cell, Comparison, Interval, Table, from_json, to_plain
from studfinder.stats import averaged


@dataclass(frozen=True)
class Condition:
    """A model as it is, or changed.

    Attributes:
        label: as a row of a table calls it.
        change: a context manager in which the model is changed.
        key: what tells the change from others of the same label.
    """

    label: str
    change: Callable[[], AbstractContextManager[Any]] = nullcontext
    key: str = ""


def with_edits(lm: LM, label: str, edits: Sequence[Edit]) -> Condition:
    """A variant made by edits."""
    return Condition(label, lambda: edited(lm, edits), edits_hash(edits)[:12])


@dataclass
class Panel:
    """Scores of every variant, the first of which is the original.

    Attributes:
        labels: of the variants.
        scores: by variant and measure.
        missing: measures that could not be taken, with the reason.
    """

    labels: list[str]
    scores: dict[str, dict[str, Scores]]
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def measures(self) -> list[str]:
        """The measures that were taken."""
        return list(self.scores[self.labels[0]])

    @property
    def tasks(self) -> list[str]:
        """Those of them that are means of one score an item."""
        return [name for name in self.measures if "score" in self.scores[self.labels[0]][name].items]

    def changes(self, measure: str) -> dict[str, Interval]:
        """What changed against the original, paired, for every other variant: perplexity as a factor, tasks as a
        difference."""
        original = self.scores[self.labels[0]][measure]
        return {label: compare(original, self.scores[label][measure]).interval for label in self.labels[1:]}

    def lost(self, label: str) -> list[np.ndarray]:
        """By how much the original is better, for each task an array with one difference an item."""
        original = self.scores[self.labels[0]]
        return [_items(original[name]) - _items(self.scores[label][name]) for name in self.tasks]


def panel_of(
    bench: Bench, lm: LM, variants: Sequence[Condition], measures: Sequence[str], limits: dict[str, int | None]
) -> Panel:
    """Take every measure of every variant.

    A measure that the original model cannot be given (its text or documents are not here) is left out of all variants,
    and the reason kept.

    Args:
        variants: the first is the original.
        measures: names as on the command line, e.g. "perplexity:wikitext2", "tasks:piqa".
        limits: at most so many items, by the measure's name before the colon.

    Raises:
        StudfinderError: no measure can be taken.
    """
    panel = Panel([variant.label for variant in variants], {variant.label: {} for variant in variants})
    total = len(variants) * len(measures)
    for place, measure in enumerate(measures):
        function = measure_named(measure)
        limit = limits.get(measure.partition(":")[0])
        for number, variant in enumerate(variants):
            bench.progress(f"{measure}, {variant.label}", place * len(variants) + number, total)
            step = f"{measure} | {variant.label} {variant.key}"
            take = partial(_taken, function, lm, variant, limit, bench.settings["seed"])
            try:
                plain = bench.once(step, take)
            except WriteFailed:
                raise
            except StudfinderError as error:
                if number:
                    raise
                panel.missing[measure] = str(error)
                break
            panel.scores[variant.label][measure] = from_json(Scores, json.dumps(plain))
    bench.progress("measured", total, total)
    if not panel.measures:
        raise StudfinderError("none of the measures can be taken: " + " ".join(panel.missing.values()))
    return panel


def _taken(function: Callable[..., Scores], lm: LM, variant: Condition, limit: int | None, seed: int) -> dict[str, Any]:
    with variant.change():
        return to_plain(function(lm, limit=limit, seed=seed))


def _items(scores: Scores) -> np.ndarray:
    return np.array(scores.items["score"])


def value_table(panel: Panel, title: str, note: str) -> Table:
    """Every score; a measure that could not be taken is a column that says so."""
    columns = _columns(panel)
    rows = []
    for label in panel.labels:
        found = panel.scores[label]
        cells: list[Cell] = [found[name].interval if name in found else "not here" for name in columns]
        average = averaged([_items(found[name]) for name in panel.tasks]) if panel.tasks else None
        rows.append((label, *cells, average))
    reasons = [f"{name} is not here: {why}" for name, why in panel.missing.items()]
    empty = [name for name in panel.tasks if headroom_note(panel.scores[panel.labels[0]][name])]
    reasons += [f"The original is at chance in {', '.join(empty)}: it can show nothing there."] if empty else []
    # What a score was taken on belongs to the score: hub and local copies may differ.
    taken = "Taken on: " + "; ".join(panel.scores[panel.labels[0]][name].text for name in panel.measures) + "."
    heads = ("model", *(_head(name) for name in columns), "average of tasks")
    return Table(title=title, columns=heads, rows=tuple(rows), note=" ".join([note, taken, *reasons]).strip())


def change_table(panel: Panel, title: str, note: str = "") -> Table:
    """What changed against the original, paired within items: perplexity as a factor, tasks as a difference."""
    original = panel.scores[panel.labels[0]]
    rows = []
    for label in panel.labels[1:]:
        cells: list[Cell] = [compare(original[name], panel.scores[label][name]) for name in panel.measures]
        if panel.tasks:
            cells.append(Comparison(kind="difference", interval=averaged([-lost for lost in panel.lost(label)])))
        rows.append((label, *cells))
    heads = ("model", *(_head(name) for name in panel.measures), *(["average of tasks"] if panel.tasks else []))
    return Table(title=title, columns=heads, rows=tuple(rows), note=note)


def _columns(panel: Panel) -> list[str]:
    return [*panel.measures, *panel.missing]


def _head(name: str) -> str:
    kind, _, argument = name.partition(":")
    return f"perplexity {argument or 'proof'}" if kind == "perplexity" else argument or kind

"""Variants of a model x measures -> scores, a cell a step.

A cell is one measure of one variant; its value is plain JSON and is remembered, so that an interrupted grid goes on
where it stopped. Cells of one variant are taken together, because entering it (quantising, say) may cost more than
measuring. Where that is done is the executor's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from studfinder.edits import Edit, edited, edits_hash
from studfinder.errors import NotApplicable, StudfinderError, Unavailable, WriteFailed
from studfinder.measures import Scores, measure_named
from studfinder.models import LM
from studfinder.records import to_plain
from studfinder.runs import Progress, silent
from studfinder.studies.scored import MADE, GridScores, ModelVariant


def with_edits(lm: LM, label: str, edits: Sequence[Edit], family: str = "") -> ModelVariant:
    """A variant made by edits, which are its `detail`."""
    return ModelVariant(label, partial(edited, lm, edits), edits_hash(edits)[:12], family or label, detail=edits)


class Watch(Protocol):
    """A measure that holds a changed model against what it saw of the original."""

    name: str

    def see(self, lm: LM) -> None:
        """Look at the model while nothing is changed; called once or more, before a variant is entered."""

    def scores(self, lm: LM) -> Mapping[str, Scores]:
        """Scores by the names that tables call them."""


class Remembers(Protocol):
    """What a grid needs of the run that it is part of: `runs.Steps`, or an experiment's Bench."""

    def has(self, name: str, /) -> bool:
        """Whether a step's value is known."""

    def once(self, name: str, compute: Callable[[], Any], /) -> Any:
        """A step's value, computed if it is not known."""


@dataclass(frozen=True)
class GridCell:
    """One measure of one variant: all that an executor is told of it."""

    variant: str
    key: str
    measure: str
    limit: int | None
    seed: int

    @property
    def step(self) -> str:
        """Its name among the run's steps."""
        return f"{self.measure} (limit {self.limit}, seed {self.seed}) | {self.variant} {self.key}"


@dataclass(kw_only=True)
class Grid:
    """Every measure of every variant, the first of which is the original.

    Attributes:
        run: remembers what is done.
        lm: the model.
        variants: the first is the original, or whatever the others are held against.
        measures: names as on the command line, e.g. "perplexity:wikitext2", or watches.
        limits: at most so many items, by the measure's name before the colon.
        seed: of what is drawn at random.
        passes: the errors for which a measure is left out of all variants, whichever meets them.
        lenient: a later variant that cannot be entered or measured is left out, with the reason, instead of ending the
            run.
        progress: told (what is being done, how many cells are done, of how many).
        executor: carries out the cells of a variant that are not known yet; see `serial`.
    """

    run: Remembers
    lm: LM
    variants: Sequence[ModelVariant]
    measures: Sequence[str | Watch]
    limits: Mapping[str, int | None] = field(default_factory=dict)
    seed: int = 0
    passes: tuple[type[StudfinderError], ...] = (NotApplicable, Unavailable)
    lenient: bool = False
    progress: Progress = silent
    executor: Executor = field(default_factory=lambda: serial)

    def scored(self) -> GridScores:
        """Take what is not known yet, and put all of it together.

        Raises:
            StudfinderError: no measure can be taken, or what is not passed over.
        """
        found = GridScores()
        total = len(self.variants) * (len(self.measures) + 1)
        for number, variant in enumerate(self.variants):
            self.progress(variant.label, number * (len(self.measures) + 1), total)
            cells = [cell for cell in self._cells(variant) if cell.measure not in found.missing]
            found.add(variant, self._values(variant, cells, found.missing, number))
            if not number and not found.measures:
                raise StudfinderError("none of the measures can be taken: " + " ".join(found.missing.values()))
        for scores in found.scores.values():
            for measure in found.missing:
                scores.pop(measure, None)
        self.progress("measured", total, total)
        return found

    def _cells(self, variant: ModelVariant) -> list[GridCell]:
        return [
            GridCell(variant.label, variant.key, name, self.limits.get(name.partition(":")[0]), self.seed)
            for name in (MADE, *map(name_of, self.measures))
        ]

    def _values(
        self, variant: ModelVariant, cells: Sequence[GridCell], missing: dict[str, str], number: int
    ) -> dict[str, dict[str, Any]]:
        """The values of one variant by measure; what is passed over goes to `missing`."""
        every, lenient = len(self.measures) + 1, self.lenient and number > 0
        refused = f"{cells[0].step}, refused"

        def put(cell: GridCell, value: Any) -> None:
            if not isinstance(value, StudfinderError):
                self.run.once(cell.step, lambda: value)
                done = number * every + cells.index(cell) + 1
                self.progress(f"{cell.measure}, {variant.label}", done, len(self.variants) * every)
            elif lenient or len(self.measures) == 1 or not isinstance(value, self.passes):
                raise value
            else:
                missing[cell.measure] = str(value)

        # What could not be given may be here by now; what was refused stays so.
        todo = [cell for cell in cells if not self.run.has(cell.step)]
        if todo and not self.run.has(refused):
            try:
                self.executor(self, variant, todo, put)
            except WriteFailed:
                raise
            except StudfinderError as error:
                if not lenient:
                    raise
                reason = str(error)
                self.run.once(refused, lambda: reason)
        found = {cell.measure: self.run.once(cell.step, dict) for cell in cells if self.run.has(cell.step)}
        if self.run.has(refused):
            found[MADE] = {**found.get(MADE, {}), "refused": self.run.once(refused, str)}
        return found

    def see(self) -> None:
        """Let the watches look at the model before it is changed."""
        for measure in self.measures:
            if not isinstance(measure, str):
                measure.see(self.lm)

    def take(self, cell: GridCell, lm: LM) -> dict[str, Any]:
        """The value of a cell, the model being as its variant says: seconds, and scores by name.

        Raises:
            StudfinderError: it cannot be taken.
        """
        measure, began = next(one for one in self.measures if name_of(one) == cell.measure), time.monotonic()
        if isinstance(measure, str):
            scores: Mapping[str, Scores] = {measure: measure_named(measure)(lm, limit=cell.limit, seed=cell.seed)}
        else:
            scores = measure.scores(lm)
        plain = {name: to_plain(found) for name, found in scores.items()}
        return {"scores": plain, "seconds": time.monotonic() - began}


Put = Callable[[GridCell, Any], None]
Executor = Callable[[Grid, ModelVariant, Sequence[GridCell], Put], None]
"""Takes the cells of one variant, and puts the value of each, or the StudfinderError that stands in its way."""


def serial(grid: Grid, variant: ModelVariant, cells: Sequence[GridCell], put: Put) -> None:
    """Here, one after the other."""
    grid.see()
    with variant.change() as made:
        for cell in cells:
            if cell.measure == MADE:
                put(cell, {"bits": getattr(made, "bits", None), "notes": list(getattr(made, "notes", ()))})
                continue
            try:
                value: Any = grid.take(cell, variant.lm or grid.lm)
            except WriteFailed:
                raise
            except StudfinderError as error:
                value = error
            put(cell, value)


def name_of(measure: str | Watch) -> str:
    """What a cell calls a measure."""
    return measure if isinstance(measure, str) else measure.name

"""Variants of a model x measures -> scores, a cell a step.

A cell is one measure of one variant; its value is plain JSON and is remembered, so that an interrupted grid goes on
where it stopped. Variants that are streams share one reading of the original: all of them on a few windows are one
share of the work. The cells of any other variant are one, because entering it (quantising, say) may cost more than
measuring. Where shares are carried out is the business of the run's executor.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

from studfinder.edits import Edit, edited, edits_hash
from studfinder.errors import NotApplicable, NoWorkers, StudfinderError, Unavailable, WriteFailed
from studfinder.measures import Scores, measure_named
from studfinder.models import LM
from studfinder.passes import Stream
from studfinder.records import to_plain
from studfinder.runs import Executor, Progress, Share, silent
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


@runtime_checkable
class StreamWatch(Watch, Protocol):
    """A watch that can look at many changed models in one reading, where they are streams."""

    def streamed(
        self,
        lm: LM,
        streams: Sequence[Stream],
        read: Callable[[Mapping[str, Callable[[], Any]]], list[Any]],
        advance: Callable[[float], Any],
        /,
    ) -> Sequence[Mapping[str, Scores]]:
        """The scores of each; see `Original.streamed`."""


class Remembers(Protocol):
    """What a grid needs of the run that it is part of: `runs.Steps`, or an experiment's Bench."""

    def has(self, name: str, /) -> bool:
        """Whether a step's value is known."""

    def once(self, name: str, compute: Callable[[], Any], /) -> Any:
        """A step's value, computed if it is not known."""

    @property
    def executor(self) -> Executor:
        """Carries out shares of the work; see `runs.here`."""

    @property
    def spread(self) -> bool:
        """Whether it does so elsewhere."""


@dataclass(frozen=True)
class GridCell:
    """One measure of one variant."""

    variant: str
    key: str
    measure: str
    limit: int | None
    seed: int

    @property
    def step(self) -> str:
        """Its name among the run's steps."""
        return f"{self.measure} (limit {self.limit}, seed {self.seed}) | {self.variant} {self.key}"

    @property
    def refused(self) -> str:
        """The step that says why the variant was left out."""
        return f"{self.step}, refused"


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

    def scored(self) -> GridScores:
        """Take what is not known yet, and put all of it together.

        Raises:
            StudfinderError: no measure can be taken, or what is not passed over.
        """
        self._stream()
        found = GridScores()
        shares: dict[str, Share] = {}
        every = {variant.label: self._cells(variant) for variant in self.variants}
        measure_of = {cell.step: cell.measure for cells in every.values() for cell in cells}
        for variant in self.variants:
            made = every[variant.label][-1]
            # What could not be given may be here by now; what was refused stays so.
            todo = [cell for cell in every[variant.label] if not self.run.has(cell.step)]
            if todo and not self.run.has(made.refused):
                shares[f"{self._key()}, {made.step}"] = partial(self._taken, variant, todo, made, found.missing)

        def put(step: str, value: Any) -> None:
            if not isinstance(value, StudfinderError):
                self.run.once(step, lambda: value)
            elif len(self.measures) == 1 or not isinstance(value, self.passes):
                raise value
            else:
                found.missing[measure_of[step]] = str(value)
                if len(found.missing) == len(self.measures):
                    reasons = " ".join(found.missing.values())
                    raise StudfinderError(f"none of the measures can be taken: {reasons}")

        self.run.executor(shares, put)
        for label, variant in zip(every, self.variants, strict=True):
            own = [cell for cell in every[label] if cell.measure not in found.missing and self.run.has(cell.step)]
            values = {cell.measure: self.run.once(cell.step, dict) for cell in own}
            if self.run.has(refused := every[label][-1].refused):
                values[MADE] = {**values.get(MADE, {}), "refused": self.run.once(refused, str)}
            found.add(variant, values)
        total = len(self.variants) * len(self.measures)
        self.progress("measured", total, total)
        return found

    def _stream(self) -> None:
        """The cells of variants that are streams, in one reading, where nothing else is measured of them. One that
        cannot be read so, and a reading that fails, are left to the variants by themselves, of which
        the one that is wrong says so."""
        watch = self.measures[0]
        if len(self.measures) > 1 or not isinstance(watch, StreamWatch):
            return
        cells = {variant.label: self._cells(variant) for variant in self.variants}
        entered: dict[str, tuple[Stream, Any]] = {}
        for variant in self.variants:
            if variant.stream is not None and not variant.lm:
                with suppress(StudfinderError):
                    entered[variant.label] = variant.stream()
        missing = [label for label in entered if not self.run.has(cells[label][0].step)]
        every = self._key()
        if not missing or self.run.has(refused := f"streams of {every}, refused"):
            return
        # Remembered, so that the reading is the same one for a run that was killed while its cells were put.
        labels = self.run.once(f"streams of {every}", lambda: missing)
        streams, made = zip(*(entered[label] for label in labels), strict=True)
        parts: list[dict[str, Any]] = []

        def timed(read: Callable[[], Any]) -> dict[str, Any]:
            began, value = time.monotonic(), read()
            return {"value": value, "given": [_given(one) for one in made], "seconds": time.monotonic() - began}

        def read(reads: Mapping[str, Callable[[], Any]]) -> list[Any]:
            steps = {f"{watch.name} of {every}, {part}": partial(timed, one) for part, one in reads.items()}
            parts.extend(several(self.run, steps))
            return [part["value"] for part in parts]

        done = [0.0]

        def advance(share: float) -> None:
            done[0] += share
            self.progress(f"{watch.name}, {len(labels)} variants at once", int(done[0] * len(cells)), len(cells))

        try:
            scores = watch.streamed(self.lm, streams, read, advance)
        except (WriteFailed, NoWorkers):
            raise
        except StudfinderError as error:
            self.run.once(refused, partial(str, error))
            return
        seconds = sum(part["seconds"] for part in parts) / len(labels)
        for label, found, given in zip(labels, scores, parts[0]["given"], strict=True):
            value = {"scores": {name: to_plain(one) for name, one in found.items()}, "seconds": seconds}
            for cell, one in zip(cells[label], (value, given), strict=True):
                self.run.once(cell.step, partial(dict, one))

    def _cells(self, variant: ModelVariant) -> list[GridCell]:
        return [
            GridCell(variant.label, variant.key, name, self.limits.get(name.partition(":")[0]), self.seed)
            for name in (*map(name_of, self.measures), MADE)
        ]

    def _key(self) -> str:
        """A short hash of all cells."""
        steps = (cell.step for variant in self.variants for cell in self._cells(variant)[:-1])
        return hashlib.sha256("\n".join(steps).encode()).hexdigest()[:12]

    def _taken(
        self, variant: ModelVariant, cells: Sequence[GridCell], made: GridCell, missing: Mapping[str, str]
    ) -> Generator[tuple[str, Any], None, None]:
        """The cells of a variant, as a share; without what turned out to be missing, or was done, meanwhile."""
        lenient = self.lenient and variant is not self.variants[0]
        try:
            for measure in self.measures:
                if not isinstance(measure, str):
                    measure.see(self.lm)
            with variant.change() as change:
                given = _given(change)
                for cell in cells:
                    if cell.measure in missing or self.run.has(cell.step):
                        continue
                    try:
                        value: Any = given if cell == made else self._take(cell, variant.lm or self.lm)
                    except WriteFailed:
                        raise
                    except StudfinderError as error:
                        if lenient:
                            # What could be entered has its bits; another grid may have put them.
                            if made in cells:
                                yield made.step, given
                            raise
                        value = error
                    yield cell.step, value
        except WriteFailed:
            raise
        except StudfinderError as error:
            if not lenient:
                raise
            yield made.refused, str(error)

    def _take(self, cell: GridCell, lm: LM) -> dict[str, Any]:
        """The value of a cell, the model being as its variant says: seconds, and scores by name.

        Raises:
            StudfinderError: it cannot be taken.
        """
        measure, began = next(one for one in self.measures if name_of(one) == cell.measure), time.monotonic()
        done = [variant.label for variant in self.variants].index(cell.variant) * len(self.measures)
        done += list(self.measures).index(measure)
        self.progress(f"{cell.measure}, {cell.variant}", done, len(self.variants) * len(self.measures))
        if isinstance(measure, str):
            scores: Mapping[str, Scores] = {measure: measure_named(measure)(lm, limit=cell.limit, seed=cell.seed)}
        else:
            scores = measure.scores(lm)
        plain = {name: to_plain(found) for name, found in scores.items()}
        return {"scores": plain, "seconds": time.monotonic() - began}


def several(run: Remembers, steps: Mapping[str, Callable[[], Any]]) -> list[Any]:
    """The values of steps that wait for no other; those that are not known are done where the run's executor does."""

    def share(step: str, compute: Callable[[], Any]) -> Generator[tuple[str, Any], None, None]:
        if not run.has(step):  # it may have been done elsewhere meanwhile
            yield step, compute()

    def put(step: str, value: Any) -> None:
        run.once(step, lambda: value)

    run.executor({step: partial(share, step, one) for step, one in steps.items() if not run.has(step)}, put)
    return [run.once(step, one) for step, one in steps.items()]


def _given(made: Any) -> dict[str, Any]:
    """What entering a variant gave, as a cell holds it."""
    return {"bits": getattr(made, "bits", None), "notes": list(getattr(made, "notes", ()))}


def name_of(measure: str | Watch) -> str:
    """What a cell calls a measure."""
    return measure if isinstance(measure, str) else measure.name

"""What a grid found: scores by variant and measure, how they differ, and the tables and charts of both."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from studfinder.measures import Scores, compare
from studfinder.models import LM
from studfinder.passes import Stream
from studfinder.records import Cell, Chart, Comparison, Interval, Plot, Series, Table, from_json, point
from studfinder.stats import averaged, crossed

MADE = "made"
"""The cell that holds what entering a variant gave: true bits, notes, or why it was refused."""
KL = "KL"
"""KL(original || variant) on our proof text."""
FEWEST = 4
"""Items below which an interval is worth nothing: their resamples would be nearly all alike."""
PAIRED = "Paired; perplexity as a factor, the rest as a difference."


@dataclass(frozen=True)
class ModelVariant:
    """A model as it is, or changed.

    Attributes:
        label: as a row of a table calls it; unique in its grid.
        change: a context manager in which the model is changed. What it gives may have `bits` (true bits a weight) and
            `notes` (what it reports of itself).
        key: what tells the change from others of the same label.
        family, kept: what it shares with others, and what it keeps that others of its family do not.
        detail: whatever an experiment needs to know of it again.
        lm: another model than the grid's.
        stream: the change as a stream of the engine, and what `change` gives, of which `bits` and `notes` are read when
            the stream has been carried; None if it cannot be one. Anew at each call.
    """

    label: str
    change: Callable[[], AbstractContextManager[Any]] = nullcontext
    key: str = ""
    family: str = ""
    kept: str = ""
    detail: Any = None
    lm: LM | None = None
    stream: Callable[[], tuple[Stream, Any]] | None = None


@dataclass
class GridScores:
    """Scores of every variant; the first is what the others are held against.

    Attributes:
        variants: in order.
        scores: by label and measure.
        made: by label what entering it gave: "bits", "notes", "refused".
        seconds: by label and measure.
        missing: measures that could not be taken, with the reason.
    """

    variants: list[ModelVariant] = field(default_factory=list)
    scores: dict[str, dict[str, Scores]] = field(default_factory=dict)
    made: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, variant: ModelVariant, values: Mapping[str, Mapping[str, Any]]) -> None:
        """Take in the cells of a variant."""
        label = variant.label
        self.variants.append(variant)
        self.made[label] = dict(values.get(MADE, {}))
        taken = {} if self.refused(label) else {name: value for name, value in values.items() if name != MADE}
        self.seconds[label] = {name: value["seconds"] for name, value in taken.items()}
        self.scores[label] = {
            name: from_json(Scores, json.dumps(plain), name=f"the remembered {name}")
            for value in taken.values()
            for name, plain in value["scores"].items()
        }

    @property
    def labels(self) -> list[str]:
        """Of all variants, the original first."""
        return [variant.label for variant in self.variants]

    @property
    def original(self) -> str:
        """The label of what the others are held against."""
        return self.variants[0].label

    @property
    def measures(self) -> list[str]:
        """Those that were taken."""
        return list(self.scores[self.original])

    @property
    def tasks(self) -> list[str]:
        """Public tasks among them, which may be averaged."""
        return [name for name in self.measures if name.startswith("tasks:")]

    def bits(self, label: str) -> float | None:
        """True bits a weight, or of whatever the variant says."""
        return self.made[label].get("bits")

    def refused(self, label: str) -> str:
        """Why a variant was left out; "" if it was not."""
        return self.made[label].get("refused", "")

    def tried(self) -> list[ModelVariant]:
        """All variants but the first and those that were refused."""
        return [variant for variant in self.variants[1:] if not self.refused(variant.label)]

    def items(self, label: str, measure: str, name: str = "score") -> np.ndarray:
        """One number an item, of one variant."""
        return np.array(self.scores[label][measure].items[name])

    def drawn(self, family: str, measure: str, name: str = "score") -> np.ndarray:
        """(draws, items) of a family, or of the one variant of this label: what `stats.crossed` takes."""
        own = [variant.label for variant in self.variants if family in (variant.family, variant.label)]
        return np.stack([self.items(label, measure, name) for label in own])

    def mean(self, family: str, measure: str, name: str = "score", what: str = "items") -> Interval:
        """Over the items and draws of a family; `what` items are."""
        clusters = self.scores[self.original][measure].clusters or None
        return crossed(lambda mean: mean["x"], {"x": self.drawn(family, measure, name)}, clusters, what=what)

    @property
    def families(self) -> list[str]:
        """Of all variants but the first, in order."""
        return list(dict.fromkeys(variant.family or variant.label for variant in self.variants[1:]))

    def change(self, measure: str, label: str, against: str = "", level: float = 0.95) -> Comparison | None:
        """What a measure changed by, paired: perplexity as a factor, the rest as a difference; None where one of the
        two lacks it."""
        before, after = (self.scores[of].get(measure) for of in (against or self.original, label))
        return None if before is None or after is None else compare(before, after, level)

    def changes(self, measure: str) -> dict[str, Interval]:
        """Against the original, for every other variant that was measured."""
        found = {variant.label: self.change(measure, variant.label) for variant in self.tried()}
        return {label: comparison.interval for label, comparison in found.items() if comparison is not None}

    def lost(self, label: str, against: str = "") -> list[np.ndarray]:
        """By how much the original (or `against`) is better, for each task an array with one difference an item."""
        return [self.items(against or self.original, name) - self.items(label, name) for name in self.tasks]

    def average(self, label: str, against: str = "") -> Comparison | None:
        """Change of the mean over tasks."""
        lost = [-items for items in self.lost(label, against)]
        return Comparison(kind="difference", interval=averaged(lost)) if lost else None

    def share(self, measure: str, taken: str, back: str, whole: str = "") -> Interval:
        """Of what `taken` lost in log perplexity (or KL) against the original (or `whole`), the share that `back` does
        not lose."""
        name = "kl" if measure == KL else "nll"
        worst, some, none = (self.items(label, measure, name) for label in (taken, back, whole or self.original))
        return averaged([worst - some], [worst - none])

    # --- tables ---

    def scores_table(self, title: str, note: str = "", *, bits: str = "", first: str = "model") -> Table:
        """Every score; a measure that could not be taken is a column that says so.

        Args:
            bits: the heading of a column of true bits; "" for none.
            first: the heading of the labels.
        """
        rows: list[tuple[Cell, ...]] = []
        for label in self.labels:
            cells: list[Cell] = [label, self.bits(label)] if bits else [label]
            cells += ["does not fit" if self.refused(label) else self._score(label, name) for name in self.measures]
            cells += ["not here"] * len(self.missing)
            if self.tasks:
                cells.append(averaged([self.items(label, name) for name in self.tasks]))
            rows.append(tuple(cells))
        texts = dict.fromkeys(self.scores[self.original][name].text for name in self.measures)
        empty = [name for name in self.tasks if not self.scores[self.original][name].details.get("headroom", 1.0)]
        # What a score was taken on belongs to the score: hub and local copies may differ.
        said = [note, f"Taken on: {'; '.join(texts)}."]
        absent = [head(name) for name in self.missing if name.startswith("tasks:")]
        said += [f"{name} is not here: {why}" for name, why in self.missing.items() if head(name) not in absent]
        said += [f"Not here: {', '.join(absent)}."] if absent else []
        said += [f"The original is at chance in {', '.join(empty)}: it can show nothing there."] if empty else []
        heads = (first, *([bits] if bits else []), *map(head, (*self.measures, *self.missing)), *self._average())
        return Table(title=title, columns=heads, rows=tuple(rows), note=" ".join(filter(None, said)))

    def _score(self, label: str, measure: str) -> Cell:
        found = self.scores[label].get(measure)
        return None if found is None else found.interval

    def _average(self) -> list[str]:
        return ["average of tasks"] if self.tasks else []

    def changes_table(
        self,
        title: str,
        note: str = PAIRED,
        *,
        pairs: Iterable[tuple[str, str, str]] | None = None,
        first: str = "",
    ) -> Table:
        """What changed, paired within items.

        Args:
            pairs: (what the row is called, changed, plain); by default every other variant against the original.
            first: the heading of what rows are called; "model", or "pair" of pairs, unless told.
        """
        own = pairs is None
        rows = list(pairs) if pairs is not None else [(v.label, v.label, self.original) for v in self.tried()]
        cells = [
            (
                called,
                *(self.change(name, label, plain) for name in self.measures),
                *([self.average(label, plain)] if self.tasks else []),
            )
            for called, label, plain in rows
        ]
        heads = (first or ("model" if own else "pair"), *map(head, self.measures), *self._average())
        return Table(title=title, columns=heads, rows=tuple(cells), note=note)

    # --- sentences ---

    def notes(self) -> list[str]:
        """What was not measured, and which variants were left out."""
        refused = [f"{label} was left out. {self.refused(label)}" for label in self.labels if self.refused(label)]
        absent = {name: why for name, why in self.missing.items() if name.startswith("tasks:")}
        names, first = ", ".join(map(head, absent)), next(iter(absent.values()), "").partition(":")[0]
        tasks = [f"not measured: {names} ({first})."] if absent else []  # each for the same reason, and at length
        rest = [f"{name} was not measured. {why}" for name, why in self.missing.items() if name not in absent]
        return [*tasks, *rest, *refused]

    def tally(self, pairs: Sequence[tuple[str, str]], measure: str) -> str | None:
        """In how many pairs (changed, plain) a measure fell or rose, the intervals corrected for their number
        (Bonferroni), in words; None if there is no pair."""
        level = 1 - 0.05 / max(1, len(pairs))
        found = [comparison for a, b in pairs if (comparison := self.change(measure, a, b, level)) is not None]
        if not found:
            return None
        none, what = (1.0, "factor") if found[0].kind == "ratio" else (0.0, "difference")
        lower, higher = sum(c.interval.high < none for c in found), sum(c.interval.low > none for c in found)
        middle = float(np.median([c.interval.value for c in found]))
        n = found[0].interval.n
        few = "" if n >= FEWEST else f" ({n} items are too few for an interval)"
        return (
            f"lowers {spoken(measure)} in {lower} of {len(found)} and raises it in {higher} (intervals that exclude "
            f"{none:g}, corrected for their number; median {what} {middle:.4g}){few}"
        )

    # --- charts ---

    def chart(self, name: str = "changes", *, by: str = "variant") -> Chart:
        """Changes against the original, of perplexities and of the rest.

        Args:
            by: what stands in rows, "variant" or "measure"; the other has colours.
        """
        factors = [m for m in self.measures if "nll" in self.scores[self.original][m].items]
        rest = [m for m in self.measures if m not in factors and m != KL]
        labels = [variant.label for variant in self.tried()]
        plots = []
        for measures, x, none in ((factors, "perplexity / original", 1.0), (rest, "score minus original", 0.0)):
            if not measures:
                continue
            points = {m: [point(self.change(m, label)) for label in labels] for m in measures}
            heads = [head(measure) for measure in measures]
            if by == "variant":
                rows, series = labels, [(h, points[m]) for h, m in zip(heads, measures, strict=True)]
            else:
                rows = heads
                series = [(label, [points[m][place] for m in measures]) for place, label in enumerate(labels)]
            drawn = tuple(Series(name=one, points=tuple(found)) for one, found in series)
            plots.append(Plot(kind="dots", rows=tuple(rows), series=drawn, x=x, none=none, log=none == 1.0))
        return Chart(name=name, plots=tuple(plots))


def head(measure: str) -> str:
    """A measure as a column calls it."""
    kind, _, argument = measure.partition(":")
    if measure == KL:
        return "KL, nats per token"
    if kind == "perplexity":
        return f"perplexity {argument or 'proof'}"
    return argument if kind == "tasks" else measure.replace(":", " ")


def spoken(measure: str) -> str:
    """A measure as a sentence calls it."""
    kind, _, argument = measure.partition(":")
    return "KL from the original" if measure == KL else f"{kind} on {argument}" if argument else kind

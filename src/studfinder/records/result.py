"""What measuring and experiments write: tables whose cells know their uncertainty, and where they came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from studfinder.records.chart import Chart
from studfinder.records.claims import ClaimResult
from studfinder.records.interval import Comparison, Interval
from studfinder.records.presented import Presented
from studfinder.records.public import OneLine
from studfinder.records.run import ModelCard, RunCard

Cell = Interval | Comparison | int | float | str | None


@dataclass(frozen=True, kw_only=True)
class Table(OneLine):
    """A table of a result.

    Attributes:
        title: what it shows.
        columns: their headings, with units.
        rows: one cell a column; a cell is a number, an interval, a comparison, a text or nothing.
        note: how to read it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title!r}: {len(row)} cells for {len(self.columns)} columns: {row}")


@dataclass(frozen=True, kw_only=True)
class Result(Presented):
    """An experiment's outcome.

    Attributes:
        name: e.g. "super-weight/ablation".
        paper, shows: the paper's arXiv number, and which table or figure of it this answers.
        models: what it ran on.
        run: settings, command, time.
        tables: what was measured.
        notes: what the numbers say, in sentences made from the numbers.
        charts: the figures, as plain data.
        claims: what each model says of the paper's claims.
        data: by model, what an experiment's own figure needs and what else is worth keeping.
    """

    format: Literal["studfinder.experiment"] = "studfinder.experiment"
    version: Literal[1] = 1
    name: str
    paper: str
    shows: str
    models: tuple[ModelCard, ...]
    run: RunCard
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    claims: tuple[ClaimResult, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Result({self.name!r} of {', '.join(repr(card.id) for card in self.models) or 'its own models'})"


@dataclass(frozen=True, kw_only=True)
class Measured(OneLine):
    """One line of a scorecard.

    Attributes:
        measure: its name on the command line.
        kind: "fluency", "context", "memory" or "reasoning".
        what: the measure's own name with its protocol, and the text it was scored on.
        score: of the model, edited if there are edits; None if it could not be measured.
        baseline: of what it is compared with; None if nothing.
        change: paired, from baseline to score; None if nothing can be compared.
        why_not: why nothing could be measured or compared, where that needs saying.
        chance: what guessing scores.
        better: "higher" or "lower".
        headroom: whether the baseline (the model itself, where there is none) is above chance at all; None where
            there is no chance level. Without headroom a measure can show nothing.
        details: further numbers.
        seconds: wall time.
    """

    measure: str
    kind: str
    what: str
    score: Interval | None
    baseline: Interval | None = None
    change: Comparison | None = None
    why_not: str = ""
    chance: float | None = None
    better: str = "higher"
    headroom: bool | None = None
    details: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def worse(self) -> bool:
        """Whether it changed for the worse, beyond its interval."""
        if self.change is None or not self.change.changed:
            return False
        return (self.change.interval.value > (self.change.kind == "ratio")) == (self.better == "lower")


@dataclass(frozen=True, kw_only=True)
class Scorecard(Presented):
    """What a model can still do.

    Attributes:
        model: which.
        edits: what was changed in it, in words.
        against: the baseline, in words: "the same model without the edits", or another model.
        measured: a line a measure.
        run: settings, command, time.
    """

    format: Literal["studfinder.scorecard"] = "studfinder.scorecard"
    version: Literal[1] = 1
    model: ModelCard
    edits: tuple[str, ...] = ()
    against: str = ""
    measured: tuple[Measured, ...]
    run: RunCard

    def __repr__(self) -> str:
        edits = f", {len(self.edits)} edits" if self.edits else ""
        return f"Scorecard({self.model.id!r}: {len(self.measured)} measures{edits})"

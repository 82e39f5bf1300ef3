"""The record of an equalised model: what was changed, that it computes the same, and what rounding gains by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from studfinder.records.interval import Interval
from studfinder.records.presented import Presented
from studfinder.records.public import OneLine
from studfinder.records.run import ModelCard, RunCard

ChangeKind = Literal["column", "key bias", "value bias"]


@dataclass(frozen=True, kw_only=True)
class EqualChange(OneLine):
    """One change that leaves a model what it computes.

    Attributes:
        kind: "column": a column of a down projection times 2^power and what enters it by as much less; "key bias": the
            bias of K in slow rotary pairs, which a softmax cannot see, taken away; "value bias": the bias of V moved
            behind attention, into that of its output.
        layer: the block.
        parameter: the matrix, or the bias.
        words: what was done, and why.
        exact: whether it is bit for bit the same by construction.
        column, power: of a column.
        head, dims: of a key bias: the head of K, and its dims.
        taken: share of the bias's squares that was taken away, or moved.
        bound: of a key bias: at most so many nats is the KL of one query's attention, see `quantizers.key_bias`.
    """

    kind: ChangeKind
    layer: int
    parameter: str
    words: str
    exact: bool
    column: int | None = None
    power: int | None = None
    head: int | None = None
    dims: tuple[int, ...] = ()
    taken: float | None = None
    bound: float | None = None


@dataclass(frozen=True, kw_only=True)
class EqualCheck(OneLine):
    """The changed model beside the original on text that chose nothing, at one length of context.

    Attributes:
        tokens: of a window.
        kl: KL(original || changed), nats per token; None where there were too few windows for an interval.
        largest: that of the worst window.
        equal: whether every logit is bit for bit the same.
    """

    tokens: int
    windows: int
    kl: Interval | None
    largest: float
    equal: bool


@dataclass(frozen=True, kw_only=True)
class EqualGain(OneLine):
    """What rounding costs before and after, in nats per token from the unrounded original.

    Attributes:
        stored_as: a format of weights by its name, or "KV int8" and the like for a cache of K.
        before, after: KL.
        less: before minus after, paired.
    """

    stored_as: str
    before: Interval
    after: Interval
    less: Interval


@dataclass(frozen=True, kw_only=True)
class Equivalence(Presented):
    """An equivalent form of a model that rounds better, or that there is none.

    Attributes:
        model: the original.
        changes: what was done; nothing where there was nothing to gain.
        checks: that it computes the same, by length of context.
        gains: by format.
        context: tokens up to which it holds.
        text, judged_on: what chose the changes, and what judged them.
        verdict: in a sentence.
        notes: what was left alone, and why.
        run: settings, command, time.
    """

    format: Literal["studfinder.equivalence"] = "studfinder.equivalence"
    version: Literal[1] = 1
    model: ModelCard
    changes: tuple[EqualChange, ...]
    checks: tuple[EqualCheck, ...]
    gains: tuple[EqualGain, ...]
    context: int
    text: str
    judged_on: str
    verdict: str
    notes: tuple[str, ...] = ()
    run: RunCard

    def __repr__(self) -> str:
        return f"Equivalence({self.model.id!r}, {len(self.changes)} changes: {self.verdict})"

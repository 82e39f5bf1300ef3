"""The record of a diagnosis: what a checkpoint lost against what it was made from, where, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from studfinder.records.interval import Interval
from studfinder.records.presented import Presented
from studfinder.records.public import OneLine
from studfinder.records.recipe import Recipe
from studfinder.records.run import ModelCard, RunCard


@dataclass(frozen=True, kw_only=True)
class PartDiagnosis(OneLine):
    """Matrices that engines run as one, or a parameter outside them.

    Attributes:
        name: of the fused group, or the parameter.
        members: its parameters.
        layer: the block, from 0; None outside the blocks.
        pattern: what is wrong with the worst of them, in a kind; see `diagnosis.patterns.Pattern`.
        words: the same in words.
        breaks: whether rounding does not do this.
        error: relative, of the worst of them.
        won: nats per token by which the KL falls when this alone is put back; None if that was not measured.
        share: of the whole KL.
        predicted: nats per token that its difference costs, to second order (`diagnosis.predicted`).
    """

    name: str
    members: tuple[str, ...]
    layer: int | None
    pattern: str
    words: str
    breaks: bool
    error: float
    won: Interval | None = None
    share: float | None = None
    predicted: float | None = None


@dataclass(frozen=True, kw_only=True)
class BlockDiagnosis(OneLine):
    """A block's error relative to the residual stream that leaves it, a mean over tokens: what it does wrong by itself,
    and what leaves it in all."""

    layer: int
    injected: float
    total: float


@dataclass(frozen=True, kw_only=True)
class CarrierDiagnosis(OneLine):
    """Something that carries the original, and what it is in the checkpoint.

    Attributes:
        kind: "super-weight candidate" (its value), "output spike" (the largest output of down_proj in that layer),
            "massive activation", "massive K" (its norm over tokens), "attention to the first token".
        place: where.
        was, is_now: in the original (with factors moved as the checkpoint has them) and in the checkpoint.
        intact: whether it changed by a quarter at most.
    """

    kind: str
    place: str
    was: float
    is_now: float
    intact: bool


@dataclass(frozen=True, kw_only=True)
class WorstToken(OneLine):
    """A token at which the two models differ most: where, what comes before it, and its KL in nats."""

    window: int
    position: int
    context: str
    token: str
    kl: float


@dataclass(frozen=True)
class KindDiagnosis(OneLine):
    """The mean KL, in nats, where a token of a kind comes next, and how many do."""

    kind: str
    tokens: int
    kl: float


@dataclass(frozen=True)
class StoredDiagnosis(OneLine):
    """Something about how a checkpoint is stored: a format or "scales", of which matrix or tensor, and in words."""

    what: str
    where: str
    about: str


@dataclass(frozen=True, kw_only=True)
class SettingDiagnosis(OneLine):
    """A setting that differs.

    Attributes:
        name, was, is_now: which, and what it was and is.
        about: what it is about.
        computes: whether it changes what is computed of given tokens.
        counts: whether that may be a fault; False of what changes nothing.
        kl: what it alone costs the original, nats per token; None where that was not measured.
    """

    name: str
    was: str
    is_now: str
    about: str
    computes: bool
    counts: bool = True
    kl: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class EngineDiagnosis(OneLine):
    """What an engine said of prompts beside what the weights say.

    Attributes:
        prompts, tokens: how many were compared.
        off: median difference of a token's log-probability, nats.
        far: its 95th percentile.
        begins: the position from which on most differ by more than the limit; None if they agree.
        agrees: whether the 95th percentile is within the limit.
    """

    prompts: int
    tokens: int
    off: float
    far: float
    begins: int | None
    agrees: bool


@dataclass(frozen=True, kw_only=True)
class Diagnosis(Presented):
    """What a checkpoint lost, where, and why.

    Attributes:
        model, original: the checkpoint, and what it was made from.
        ill: whether something is wrong that rounding does not do.
        cause: the kind of the first cause, e.g. a pattern's, "setting", "engine"; "" if there is none.
        culprit: what it was found in: a part's or a setting's name.
        verdict: in a sentence.
        mend: what to do.
        recipe: the same for a tool, where more bits mend it and the checkpoint says its formats.
        text: what was read.
        kl, back: KL(original || model) and KL(model || original), nats per token.
        agreement: the share of positions where both find the same token likeliest.
        perplexity: of the model over that of the original.
        settings_kl: the KL that is left with all weights put back: what settings do; None if not measured.
        by_position: KL in stretches of a window, as (first position, KL).
        by_kind: KL by the kind of token that comes next.
        stored: what is stored unlike others, and scales that cannot be right.
        parts: those that differ, the worst first.
        carriers: what carries the original, and what it is here.
        blocks, worst, settings, engine: see their records.
        run: settings, command, time.
    """

    format: Literal["studfinder.diagnosis"] = "studfinder.diagnosis"
    version: Literal[1] = 1
    model: ModelCard
    original: ModelCard
    ill: bool
    cause: str
    culprit: str
    verdict: str
    mend: str
    recipe: Recipe | None = None
    text: str
    kl: Interval
    back: Interval
    agreement: Interval
    perplexity: Interval
    settings_kl: Interval | None = None
    by_position: tuple[tuple[int, float], ...] = ()
    by_kind: tuple[KindDiagnosis, ...] = ()
    stored: tuple[StoredDiagnosis, ...] = ()
    parts: tuple[PartDiagnosis, ...] = ()
    carriers: tuple[CarrierDiagnosis, ...] = ()
    blocks: tuple[BlockDiagnosis, ...] = ()
    worst: tuple[WorstToken, ...] = ()
    settings: tuple[SettingDiagnosis, ...] = ()
    engine: EngineDiagnosis | None = None
    run: RunCard

    def __repr__(self) -> str:
        return f"Diagnosis({self.model.id!r}: {self.verdict})"

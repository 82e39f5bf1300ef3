"""Numbers of a model that carry it, and what taking them out does: entries of `findings.json`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from studfinder.records.interval import Interval
from studfinder.records.public import OneLine

Verdict = Literal["candidate", "proven", "proven-jointly", "inert"]
Place = Annotated[int, Field(ge=0, strict=True)]
"""A layer, a head, a dim, a position: from 0."""
NumberKind = Literal["gain", "bias", "embedding", "head", "down projection", "other weight"]
"""Of a number: what its parameter is."""
VOCABULARY: tuple[NumberKind, ...] = ("embedding", "head")
"""Kinds whose numbers are of one token each. Many of them carry something, each on the text where its token comes or
would come: of them nothing is said in all, and `CensusCard` bounds the others."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What setting a weight to zero did to the model on the proof text.

    Attributes:
        kl: KL(clean || edited) in nats per token.
        perplexity_ratio: perplexity edited / clean.
        control_kl: the largest KL among the matched controls that were looked at to the end.
        control_kls: the KL of every matched control, on as many windows as showed it to be below the weight's.
        marginal_kl: what the weight adds to the set of all candidates (KL of the set minus KL of the set
            without it).
        null_kl: of a small effect, the KL of its null edit (the weight moved to a neighbour in its dtype), mean over
            draws. What any change at all does.
        net_kl: kl less that.
    """

    kl: Interval
    perplexity_ratio: Interval
    control_kl: Interval | None = None
    control_kls: tuple[float, ...] = ()
    marginal_kl: Interval | None = None
    null_kl: Interval | None = None
    net_kl: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class SuperWeight(OneLine):
    """One entry of a `down_proj` matrix that carries most of an outlying output (Yu et al. 2024).

    Attributes:
        layer: block, from 0.
        parameter: name of the Hugging Face parameter.
        index: literal index into that parameter (transposed for Conv1D, three numbers for fused experts, two where they
            stand one under the other).
        checkpoint_tensor, checkpoint_index: the same entry in the checkpoint file, verified there; None if it was not.
        checkpoint_note: why not.
        expert: which expert, or None.
        row, col: output and input channel.
        value: the weight.
        input_spike: the input of `col` at the token where the output spikes, x_k.
        output_spike: the output of `row` there, y_j.
        share: x_k w_jk / y_j.
        score: |x_k w_jk| over the median |y| of the layer.
        prompt, position, token: where that was.
        predicted: KL of setting it to zero as the census predicts it, in nats per token; None without one.
        effect, verdict: filled in by the proof.
        call: which use of the matrix in a forward pass, from 1; None where it is used once.
    """

    layer: int
    parameter: str
    index: tuple[int, ...]
    checkpoint_tensor: str | None
    checkpoint_index: tuple[int, ...] | None
    expert: int | None
    row: int
    col: int
    value: float
    input_spike: float
    output_spike: float
    share: float
    score: float
    prompt: int
    position: int
    token: str
    predicted: float | None = None
    effect: Effect | None = None
    verdict: Verdict = "candidate"
    call: int | None = None
    checkpoint_note: str = ""

    def __post_init__(self) -> None:
        matrix, expert = self.index[-2:], self.index[:-2]
        if self.layer < 0 or any(at < 0 for at in self.index):
            raise ValueError(f"{self}: a place below 0")
        if self.expert is not None and not expert:  # experts one under the other in a matrix
            within = self.row if matrix[1] == self.col else self.col
            above = matrix[0] - within
            if above < 0 or above % max(self.expert, 1) or bool(above) != bool(self.expert):
                raise ValueError(f"{self}: index {list(self.index)} is of another expert")
            matrix, expert = (within, matrix[1]), (self.expert,)
        if matrix not in ((self.row, self.col), (self.col, self.row)):
            raise ValueError(f"{self}: index {list(self.index)} is another place")
        if expert != (() if self.expert is None else (self.expert,)):
            raise ValueError(f"{self}: index {list(self.index)} is of another expert")
        if not math.isfinite(self.value):
            raise ValueError(f"{self}: the weight is {self.value}")
        if self.verdict in ("proven", "proven-jointly") and (self.effect is None or not self.effect.kl.ordered):
            raise ValueError(f"{self}: {self.verdict}, without an effect that could have shown it")

    def __str__(self) -> str:
        expert = "" if self.expert is None else f".experts.{self.expert}"
        call = "" if self.call is None else f" (call {self.call})"
        return f"layers.{self.layer}{expert} down_proj[{self.row}, {self.col}]{call}"


@dataclass(frozen=True, kw_only=True)
class OtherNumber(OneLine):
    """A number that was not found by a spike but by what is predicted of it: a gain, say (see `detectors.census`).

    Attributes:
        name: as it is printed and read, e.g. "layers.29 post_attention_layernorm[17]".
        kind: what its parameter is.
        layer: block, from 0; None outside the blocks.
        parameter, index: name of the Hugging Face parameter and literal index into it.
        value: the number, w.
        predicted, error: predicted KL of setting it to zero, in nats per token, and its standard error; None where it
            was found otherwise.
        predicted_off: of a gain that multiplies by 1 + w, where w at zero leaves the factor 1: the same of taking the
            factor to zero. None for all else.
        effect, verdict: of setting w to zero, filled in by the proof; `effect_off` of taking the factor to zero.
    """

    name: str
    kind: NumberKind
    layer: Place | None
    parameter: str
    index: tuple[Place, ...]
    value: float
    predicted: float | None
    error: float | None
    predicted_off: float | None = None
    effect: Effect | None = None
    effect_off: Effect | None = None
    verdict: Verdict = "candidate"

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"{self}: the number is {self.value}")
        if self.verdict in ("proven", "proven-jointly") and (self.effect is None or not self.effect.kl.ordered):
            raise ValueError(f"{self}: {self.verdict}, without an effect that could have shown it")

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, kw_only=True)
class CensusPlace:
    """What is predicted of the numbers of one kind in one layer.

    Attributes:
        layer: block, from 0; None outside the blocks.
        kind: what their parameters are.
        predicted: the sum of their predicted KL of setting each to zero alone, in nats per token.
        decades: how many have a predicted KL of exactly 0 (the number is 0, or no gradient reached it), and then how
            many lie in each decade from 10^`CensusCard.least_decade` on (in the first also all below it).
    """

    layer: Place | None
    kind: NumberKind
    predicted: float
    decades: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class CensusCard(OneLine):
    """How every number of the model was ranked, and how many may have been missed (see `detectors.census`).

    Attributes:
        tokens, draws: of the prompts, and labels drawn from the model at each.
        least_decade: the first decade of every `CensusPlace.decades`.
        places: every number once, by layer and kind; tied parameters count once.
        half: so few numbers carry half of all that is predicted; None if more than were kept.
        threshold: KL in nats per token from which a number is said to carry something.
        heavy: how many were measured above it, all but those of the `VOCABULARY`; they are listed in the findings.
            None where nothing was measured.
        pools, pools_of, loud: numbers that were not tested alone, all but those of the `VOCABULARY`, were set to zero
            in pools: how many pools were measured, of how many, and how many carried more than the threshold.
        chance: the smallest chance of any number to be in a pool that was measured.
        unseen: with 95 % confidence at most so many more numbers carry more than the threshold; None without pools.
        nonfinite: parameters whose gradients held inf or NaN, where nothing is predicted.
    """

    tokens: int
    draws: int
    least_decade: int
    places: tuple[CensusPlace, ...]
    half: int | None
    threshold: float
    heavy: int | None = None
    pools: int = 0
    pools_of: int = 0
    loud: int = 0
    chance: float = 0.0
    unseen: int | None = None
    nonfinite: tuple[str, ...] = ()

    @property
    def numbers(self) -> int:
        """How many numbers the model has."""
        return sum(sum(place.decades) for place in self.places)

    @property
    def bounded(self) -> int:
        """How many numbers `heavy` and `unseen` speak of."""
        return sum(sum(place.decades) for place in self.places if place.kind not in VOCABULARY)

    @property
    def predicted(self) -> float:
        """The sum of what is predicted of each, in nats per token."""
        return sum(place.predicted for place in self.places)

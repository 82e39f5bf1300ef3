"""What papers claim, in a form that a number can decide, and what the numbers said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from studfinder.records.interval import Comparison, Interval
from studfinder.records.public import OneLine

Decision = Literal["held", "did not hold", "not decided"]


@dataclass(frozen=True, kw_only=True)
class Claim(OneLine):
    """A claim of a paper, and the number that decides it.

    Attributes:
        key: e.g. "super-weight/restore".
        says: the claim, in a sentence.
        decides: what the number is, with its unit: the contrast with the control that could have failed.
        kind: "more" if the number must lie above `none`, "less" below it, "within" if it must stay near it.
        none: the number if the claim is not true: 0 of differences, 1 of ratios.
        published: the paper's own figures, in words.
        paper_effect: the paper's own number on this scale; None if it gives none that compares.
        margin: of "within", the largest departure from `none` that still counts as none (of ratios: a factor).
    """

    key: str
    says: str
    decides: str
    kind: Literal["more", "less", "within"] = "more"
    none: float = 0.0
    published: str = ""
    paper_effect: float | None = None
    margin: float | None = None

    def __post_init__(self) -> None:
        if (self.kind == "within") != (self.margin is not None):
            raise ValueError(f"{self.key}: a margin belongs to a claim of kind 'within', and to no other")


@dataclass(frozen=True, kw_only=True)
class ClaimResult(OneLine):
    """What one model says of a claim.

    Attributes:
        claim: which.
        model: its name; "" for models that the experiment trained.
        verdict: by `number` alone; see `studfinder.studies.judged`.
        number: what decides; None where it could not be measured.
        effect, control: what the number contrasts, each by itself.
        smallest: the smallest difference from `claim.none` that so many items could have shown (of ratios: a factor).
        items: on how many of what.
        why: why nothing was measured, or what else stands in the way of the claim.
        cost: which run would decide what is not decided, and what it takes.
    """

    claim: Claim
    verdict: Decision
    model: str = ""
    number: Interval | None = None
    effect: Interval | Comparison | float | str | None = None
    control: Interval | Comparison | float | str | None = None
    smallest: float | None = None
    items: str = ""
    why: str = ""
    cost: str = ""

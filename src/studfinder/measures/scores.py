"""What every measure returns: a value, its interval, and the items it was made of; and how two runs compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from studfinder.errors import NotApplicable
from studfinder.records import Comparison, Interval
from studfinder.records.presented import Presented
from studfinder.stats import mcnemar, mean_interval, ratio_interval
from studfinder.visible import visible


@dataclass(frozen=True, kw_only=True)
class Scores(Presented):
    """A score with its items, so that two runs on the same items can be compared pairwise.

    Attributes:
        measure: name, with the protocol where there are several, e.g. "perplexity (gptq)".
        value: the score.
        interval: of the score.
        items: by name one number an item. "nll" and "tokens" (a perplexity), "kl" and "tokens" (a KL a token), or
            "score" (its mean is the value); "correct" (0 or 1) beside it where answers are right or wrong, "margin" in
            nats where answers have one.
        clusters: one label an item where items hang together (a document, an entity); empty if they do not.
        text: which text or items, with the hash of what was scored.
        chance: what guessing scores; None where there is no such thing.
        better: "higher" or "lower".
        details: further numbers by name, e.g. accuracy by depth.
    """

    measure: str
    value: float
    interval: Interval
    items: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    clusters: tuple[str, ...] = ()
    text: str = ""
    chance: float | None = None
    better: str = "higher"
    details: Mapping[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Scores({self.measure!r}: {self.interval}{f' on {visible(self.text[:60])}' if self.text else ''})"


def scored(
    measure: str,
    score: Sequence[float],
    *,
    text: str,
    chance: float | None = None,
    better: str = "higher",
    clusters: Sequence[str] = (),
    level: float = 0.95,
    details: Mapping[str, float] | None = None,
    **items: Sequence[float],
) -> Scores:
    """Scores whose value is the mean of one number an item.

    Raises:
        StudfinderError: there are no items.
    """
    if not len(score):
        raise NotApplicable(f"{measure} has no items", expected="at least one")
    interval = mean_interval(score, clusters or None, level=level, what="items")
    named = {"score": score, **items}
    return Scores(
        measure=measure,
        value=interval.value,
        interval=interval,
        items={name: tuple(float(value) for value in values) for name, values in named.items()},
        clusters=tuple(clusters),
        text=text,
        chance=chance,
        better=better,
        details=details or {},
    )


def compare(before: Scores, after: Scores, level: float = 0.95) -> Comparison:
    """What changed between two runs on the same items: a ratio of perplexities, or a difference of KLs or of means.

    Raises:
        StudfinderError: the two are not of the same measure and items.
    """
    if (before.measure, before.text) != (after.measure, after.text) or before.clusters != after.clusters:
        raise NotApplicable(
            f"{before.measure} on {before.text} cannot be compared with {after.measure} on {after.text}",
            do="Run both on the same items",
        )
    what = next(name for name in ("nll", "kl", "score") if name in before.items)
    difference = np.array(after.items[what]) - np.array(before.items[what])
    if what != "score":
        ratio = what == "nll"
        interval = ratio_interval(difference, np.array(before.items["tokens"]), level=level, exponential=ratio)
        return Comparison(kind="ratio" if ratio else "difference", interval=interval)
    interval = mean_interval(difference, before.clusters or None, level=level)
    p = None
    if "correct" in before.items:
        p = mcnemar(before.items["correct"], after.items["correct"])
    return Comparison(kind="difference", interval=interval, p=p)

"""What every measure returns: a value, its interval, and the items it was made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from studfinder.records import Interval


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A score with its items, so that two runs on the same items can be compared pairwise.

    Attributes:
        measure: name, with the protocol where there are several, e.g. "perplexity (gptq)".
        value: the score.
        interval: of the score.
        items: by name one number an item, e.g. {"nll": (...), "tokens": (...)}.
        text: which text, with the hash of its token ids.
    """

    measure: str
    value: float
    interval: Interval
    items: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    text: str = ""

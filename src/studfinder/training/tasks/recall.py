"""Passkey-like recall: pairs of key and value among filler, and one key asked for at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from studfinder.errors import StudfinderError
from studfinder.training.tasks.task import Example, ToyTask

MARK, ASK = 0, 1
"""Ids that come before a key: here is its value, and what was its value?"""


@dataclass(frozen=True, kw_only=True)
class Recall(ToyTask):
    """MARK key value, `pairs` times at random places in filler; then ASK key, and its value is the answer.

    Keys are drawn without replacement from the ids after the two marks, values uniformly from the next quarter, filler
    from the rest. Keys and values never stand in filler, so that nothing but the pair gives the answer.

    Attributes:
        pairs: how many keys and values are hidden.
    """

    name: ClassVar[str] = "recall"

    vocabulary: int = 256
    length: int = 64
    pairs: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs < 1 or 3 * self.pairs + 3 > self.length:
            raise StudfinderError(
                f"{self.pairs} pairs do not fit in {self.length} tokens", expected=f"1 to {self.length // 3 - 1}"
            )
        if self.vocabulary < 16 or self.pairs > self.vocabulary // 4:
            raise StudfinderError(
                f"vocabulary {self.vocabulary} is too small for {self.pairs} pairs", expected="16, and 4 ids a pair"
            )

    def example(self, random: np.random.Generator) -> Example:
        quarter = self.vocabulary // 4
        keys = 2 + random.permutation(quarter)[: self.pairs]
        values = 2 + quarter + random.integers(quarter, size=self.pairs)
        filler = self.length - 3 * self.pairs - 3
        places = set(random.permutation(filler + self.pairs)[: self.pairs].tolist())
        noise = random.integers(2 + 2 * quarter, self.vocabulary, size=filler).tolist()
        pairs = list(zip(keys.tolist(), values.tolist(), strict=True))
        asked, answer = pairs[int(random.integers(self.pairs))]
        tokens: list[int] = []
        for slot in range(filler + self.pairs):
            tokens += [MARK, *pairs.pop()] if slot in places else [noise.pop()]
        tokens_T = np.array([*tokens, ASK, asked, answer])
        scored_T = np.zeros(self.length, dtype=bool)
        scored_T[-1] = True
        return Example(tokens_T, tokens_T.copy(), scored_T)

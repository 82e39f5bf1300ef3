"""k-hop induction: look up the last place of this token, go to what followed, and again, k times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from studfinder.errors import StudfinderError
from studfinder.records.config import option
from studfinder.training.tasks.task import IGNORED, Example, ToyTask


@dataclass(frozen=True, kw_only=True)
class HopK(ToyTask):
    """hop_k of Sanford, Hsu and Telgarsky (2024, arXiv 2402.09268, section 4): find(i) is the place after the latest
    earlier occurrence of token i, and the answer at i is the token at find applied k times.

    The first token says k (its id is symbols + k - 1), uniform from 1 to `hops`; the others are drawn uniformly from
    `symbols`, never the same twice in a row. Where fewer than k hops are possible nothing is asked.

    Attributes:
        symbols: the alphabet.
        hops: the largest k.
        exact: ask always for `hops`, to measure accuracy at one k.
    """

    name: ClassVar[str] = "hop-k"

    vocabulary: int = 0
    length: int = 101
    symbols: int = option(4, least=2)
    hops: int = option(16, least=1)
    exact: int = 0
    train_on: Literal["all", "scored"] = "scored"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vocabulary not in (0, self.symbols + self.hops):
            raise StudfinderError("the vocabulary of hop-k follows from symbols and hops", do="Do not set it")
        object.__setattr__(self, "vocabulary", self.symbols + self.hops)

    def example(self, random: np.random.Generator) -> Example:
        k = self.hops if self.exact else int(random.integers(1, self.hops + 1))
        steps = random.integers(1, self.symbols, size=self.length - 1)
        words = (int(random.integers(self.symbols)) + np.cumsum(steps)) % self.symbols
        answer_T = hop(words, k)
        tokens_T = np.concatenate([[self.symbols + k - 1], words])
        labels_T = np.full(self.length, IGNORED)
        labels_T[2:] = answer_T[:-1]  # label t belongs to token t-1, and token 0 says k
        return Example(tokens_T, labels_T, labels_T != IGNORED)


def hop(words_T: np.ndarray, k: int) -> np.ndarray:
    """The token k hops back from each place, IGNORED where there are fewer hops."""
    latest: dict[int, int] = {}
    places = np.full(len(words_T), -1)
    for place, word in enumerate(words_T.tolist()):
        places[place] = latest.get(word, -2) + 1 if word in latest else -1
        latest[word] = place
    there = np.arange(len(words_T))
    for _ in range(k):
        there = np.where(there >= 0, places[there], -1)
    return np.where(there >= 0, words_T[there], IGNORED)

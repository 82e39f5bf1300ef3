"""Induction: after a token that was seen before, say what followed it (arXiv 2411.19574, appendix D)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from studfinder.errors import StudfinderError
from studfinder.training.tasks.task import Example, ToyTask

RESERVED = 11
"""Ids that the paper keeps for special tokens; words are drawn from 11 upwards."""


@dataclass(frozen=True, kw_only=True)
class Induction(ToyTask):
    """The paper's generator. For each sequence `length` ids are kept of all; ids are drawn uniformly from them, never
    the last token again. An id without a recorded successor is appended and recorded as the successor of the token
    before it. One with a recorded successor is appended together with that successor: this is a repeat.

    A successor is therefore the one recorded last, and may be older than the token's latest occurrence. The paper's
    sequences can be one token longer than asked; here they are cut.

    Attributes:
        score: "first": the first repeat of a sequence, as the paper; "all": every repeat.
    """

    name: ClassVar[str] = "induction"

    vocabulary: int = 8000
    length: int = 512
    score: Literal["first", "all"] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vocabulary - RESERVED < self.length:
            raise StudfinderError(
                f"vocabulary {self.vocabulary} is too small for sequences of {self.length}",
                expected=f"{self.length + RESERVED} ids or more",
            )

    def example(self, random: np.random.Generator) -> Example:
        while True:
            tokens, answers = self._walk(random)
            if answers:
                break
        tokens_T = np.array(tokens[: self.length])
        scored_T = np.zeros(self.length, dtype=bool)
        scored_T[answers[:1] if self.score == "first" else answers] = True
        return Example(tokens_T, tokens_T.copy(), scored_T)

    def _walk(self, random: np.random.Generator) -> tuple[list[int], list[int]]:
        """Tokens, and where the successors of repeats stand."""
        words = RESERVED + random.permutation(self.vocabulary - RESERVED)[: self.length]
        tokens: list[int] = []
        answers: list[int] = []
        successor: dict[int, int] = {}
        last = -1
        while len(tokens) < self.length:
            for word in words[random.integers(self.length, size=self.length)].tolist():
                if word == last:
                    continue
                tokens.append(word)
                if word in successor:
                    answers.append(len(tokens))
                    tokens.append(successor[word])
                elif last >= 0:
                    successor[last] = word
                last = tokens[-1]
                if len(tokens) >= self.length:
                    break
        return tokens, [place for place in answers if place < self.length]

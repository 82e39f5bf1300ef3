"""n-gram: the next token is known from the last n-1, by a table that is the same in every sequence."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from studfinder.errors import StudfinderError
from studfinder.records.config import option
from studfinder.training.tasks.task import Example, ToyTask


@dataclass(frozen=True, kw_only=True)
class NGram(ToyTask):
    """3-gram by default, as arXiv 2411.19574, section 3.3: about 200 pairs (x1, x2) -> x3 to be learned by heart.

    Tokens are drawn uniformly; with probability `share` the first tokens of a random rule are put in instead. Where the
    last n-1 tokens are those of a rule, by design or by chance, the token that the rule says follows, and is scored.
    How the paper mixes rules and noise is not said; the table comes from `table`, not from the run's seed.

    Attributes:
        n: a rule's tokens with its answer.
        rules: how many there are.
        share: of draws that begin a rule.
        table: seed of the rules.
    """

    name: ClassVar[str] = "n-gram"

    vocabulary: int = 256
    length: int = 64
    n: int = 3
    rules: int = 200
    share: float = option(0.5, above=0, below=1)
    table: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.n < self.length:
            raise StudfinderError(f"n={self.n} is out of range", expected=f"2 to {self.length - 1}")
        if self.rules < 1 or self.rules > self.vocabulary ** (self.n - 1) / 2:
            raise StudfinderError(
                f"{self.rules} rules do not fit", expected=f"1 to {self.vocabulary ** (self.n - 1) // 2}"
            )

    @cached_property
    def answers(self) -> dict[tuple[int, ...], int]:
        """The rules: the last n-1 tokens -> the next."""
        random = np.random.default_rng(self.table)
        found: dict[tuple[int, ...], int] = {}
        while len(found) < self.rules:
            *context, answer = random.integers(self.vocabulary, size=self.n).tolist()
            found.setdefault(tuple(context), answer)
        return found

    @cached_property
    def _contexts(self) -> list[tuple[int, ...]]:
        return list(self.answers)

    def example(self, random: np.random.Generator) -> Example:
        tokens: list[int] = []
        scored: list[bool] = []
        planned: list[int] = []
        draws = iter(random.random((self.length, 2)).tolist())
        while len(tokens) < self.length:
            answer = self.answers.get(tuple(tokens[1 - self.n :]))
            if answer is not None and not planned:
                tokens.append(answer)
                scored.append(True)
                continue
            if not planned:
                begin, which = next(draws)
                planned = (
                    list(self._contexts[int(which * self.rules)])
                    if begin < self.share
                    else [int(which * self.vocabulary)]
                )
            # A rule that completes by chance inside another's context is not asked for.
            tokens.append(planned.pop(0))
            scored.append(False)
        tokens_T = np.array(tokens)
        return Example(tokens_T, tokens_T.copy(), np.array(scored))

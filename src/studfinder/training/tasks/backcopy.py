"""Bigram-backcopy: a task on which attention sinks and residual peaks grow in tiny models (arXiv 2410.13835)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from studfinder.errors import StudfinderError
from studfinder.records.config import option
from studfinder.training.tasks.task import Example, ToyTask

BOS = 0


@dataclass(frozen=True, kw_only=True)
class Backcopy(ToyTask):
    """A Markov chain, but after a trigger token comes the token that stood before it (Guo et al. 2024, section 2).

    Every sequence begins with BOS (id 0); ids 1 to `triggers` are the triggers. A head that copies is needed after
    triggers and has nothing to do elsewhere, where it parks its attention on BOS. The paper takes its chain from
    Shakespeare's letters; ours is drawn from `table`, with rows of Dirichlet(`spread`), so that it needs no text.
    Copied tokens are scored.

    Attributes:
        triggers: how many tokens are triggers; the chain never goes from one to another.
        trigger_share: the chance of a trigger after a token that is none.
        spread: of the chain's rows; smaller is easier to predict.
        table: seed of the chain.
    """

    name: ClassVar[str] = "backcopy"

    vocabulary: int = 64
    length: int = 64
    triggers: int = option(3, least=1)
    trigger_share: float = option(0.25, above=0, below=1)
    spread: float = option(0.1, above=0)
    table: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.triggers > self.vocabulary - 3:
            raise StudfinderError(f"{self.triggers} triggers", expected=f"1 to {self.vocabulary - 3}")

    @cached_property
    def chain_VV(self) -> np.ndarray:
        """Chance of token j after token i, for i that is no trigger; (V, V). Rows of triggers are zero."""
        random = np.random.default_rng(self.table)
        rows = np.zeros((self.vocabulary, self.vocabulary))
        words = self.vocabulary - 1 - self.triggers
        plain = random.dirichlet(np.full(words, self.spread), size=self.vocabulary)
        calls = random.dirichlet(np.ones(self.triggers), size=self.vocabulary)
        rows[:, 1 : 1 + self.triggers] = self.trigger_share * calls
        rows[:, 1 + self.triggers :] = (1 - self.trigger_share) * plain
        rows[BOS] = 0
        rows[BOS, 1 + self.triggers :] = 1 / words  # a sequence never begins with a trigger: there is nothing to copy
        rows[1 : 1 + self.triggers] = 0
        return rows

    @cached_property
    def _cumulative_VV(self) -> np.ndarray:
        return self.chain_VV.cumsum(axis=1)

    def example(self, random: np.random.Generator) -> Example:
        tokens, scored = [BOS], [False]
        for draw in random.random(self.length - 1).tolist():
            last = tokens[-1]
            copies = 1 <= last <= self.triggers
            following = int(np.searchsorted(self._cumulative_VV[last], draw, side="right"))
            tokens.append(tokens[-2] if copies else min(following, self.vocabulary - 1))
            scored.append(copies)
        tokens_T = np.array(tokens)
        return Example(tokens_T, tokens_T.copy(), np.array(scored))

    @property
    def entropy(self) -> float:
        """Nats a token that no model can predict, given the long-run share of tokens that are not copies."""
        rows = self.chain_VV[1 + self.triggers :]
        nats = -(rows * np.log(np.where(rows > 0, rows, 1))).sum(axis=1)
        return float(nats @ self._visits() / (1 + self.trigger_share))

    def _visits(self) -> np.ndarray:
        """Long-run share of each plain token among draws of the chain: a trigger leads back to where it came from."""
        first = 1 + self.triggers
        step = self.chain_VV[first:, first:] + self.trigger_share * np.eye(self.vocabulary - first)
        share = np.full(len(step), 1 / len(step))
        for _ in range(1000):
            share = share @ step
        return share

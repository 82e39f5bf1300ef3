"""Skill that is left: accuracy above chance as a share of the original model's, from context and from memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from studfinder.records import Interval
from studfinder.stats import crossed
from studfinder.studies import GridScores

FROM_CONTEXT, FROM_MEMORY = "context", "memory"


@dataclass(frozen=True)
class Skills:
    """What changed models keep of the skill that the original has.

    Attributes:
        scored: items of all models.
        sides: FROM_CONTEXT and FROM_MEMORY, with the tasks of each.
    """

    scored: GridScores
    sides: Mapping[str, Sequence[str]]

    def tasks(self, side: str) -> list[str]:
        """Those in which the original is above chance for sure: the others can show nothing."""
        first = self.scored.scores[self.scored.original]
        return [one for one in self.sides[side] if one in first and first[one].interval.low > (first[one].chance or 0)]

    @property
    def lacking(self) -> list[str]:
        """The sides on which no task has room to fall."""
        return [side for side in self.sides if not self.tasks(side)]

    def kept(self, *terms: tuple[int, str, str]) -> Interval:
        """A sum of shares of skill kept, each of the mean over the tasks of a side; items (or clusters of them) are
        resampled by task, and alike for all models.

        Args:
            terms: (+1 or -1, label, side).
        """
        scored, original = self.scored, self.scored.original
        tasks = list(dict.fromkeys(task for _, _, side in terms for task in self.tasks(side)))
        labels = list(dict.fromkeys([original, *(label for _, label, _ in terms)]))
        arrays = {f"{task}|{label}": scored.items(label, task)[None] for task in tasks for label in labels}
        own = {task: scored.scores[original][task].clusters for task in tasks}
        each = {task: own[task] or [f"{task} {n}" for n in range(len(scored.items(original, task)))] for task in tasks}

        def skill(mean: Mapping[str, np.ndarray], label: str, side: str) -> np.ndarray:
            chance = {task: scored.scores[original][task].chance or 0.0 for task in tasks}
            parts = [(mean[f"{t}|{label}"] - chance[t]) / (1 - chance[t]) for t in self.tasks(side)]
            return np.asarray(np.mean(parts, axis=0))

        def statistic(mean: Mapping[str, np.ndarray]) -> np.ndarray:
            shares = (
                s * skill(mean, label, side) / np.maximum(skill(mean, original, side), 1e-9) for s, label, side in terms
            )
            return np.sum(list(shares), axis=0)

        return crossed(
            statistic, arrays, {name: each[name.partition("|")[0]] for name in arrays}, what="items, by task"
        )

    def apart(self, label: str, minus: str = "") -> Interval:
        """Skill kept from context less skill kept from memory (below 0: context lost more); with `minus`, less the same
        of another model."""
        own = [(1, label, FROM_CONTEXT), (-1, label, FROM_MEMORY)]
        return self.kept(*own, *([(-1, minus, FROM_CONTEXT), (1, minus, FROM_MEMORY)] if minus else []))

"""Skill that is left: accuracy above chance as a share of the original model's, from context and from memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from studfinder.records import Interval
from studfinder.stats import bootstrap
from studfinder.studies import GridScores

CONTEXT, MEMORY = "context", "memory"


@dataclass(frozen=True)
class Skills:
    """What changed models keep of the skill that the original has.

    Attributes:
        scored: items of all models.
        sides: CONTEXT and MEMORY, with the tasks of each.
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
        """A sum of shares of skill kept, each the mean over the tasks of a side; items (or clusters of them) resampled
        by task, and alike for all models.

        Args:
            terms: (+1 or -1, label, side).
        """
        labels = list(dict.fromkeys([self.scored.original, *(label for _, label, _ in terms)]))
        every = list(dict.fromkeys(task for _, _, side in terms for task in self.tasks(side)))
        pooled = {task: self._pooled(task, labels) for task in every}

        def statistic(*times: np.ndarray) -> np.ndarray:
            share = {}
            for task, times_RG in zip(every, times, strict=True):
                sums_GL, sizes_G = pooled[task]
                above_RL = times_RG @ sums_GL / (times_RG @ sizes_G)[:, None] - self._chance(task)
                share[task] = above_RL / np.maximum(above_RL[:, :1], 1e-9)
            parts = [
                sign * np.mean([share[task][:, labels.index(label)] for task in self.tasks(side)], axis=0)
                for sign, label, side in terms
            ]
            return np.sum(parts, axis=0)

        value, low, high = bootstrap(statistic, [len(sizes) for _, sizes in pooled.values()]).tolist()
        items = sum(len(self.scored.items(self.scored.original, task)) for task in every)
        return Interval(
            value=value, low=low, high=high, level=0.95, n=items, method="paired bootstrap over items, by task"
        )

    def apart(self, label: str, minus: str = "") -> Interval:
        """Skill kept from context less skill kept from memory (below 0: context lost more); with `minus`, less the same
        of another model."""
        own = [(1, label, CONTEXT), (-1, label, MEMORY)]
        return self.kept(*own, *([(-1, minus, CONTEXT), (1, minus, MEMORY)] if minus else []))

    def _chance(self, task: str) -> float:
        return self.scored.scores[self.scored.original][task].chance or 0.0

    def _pooled(self, task: str, labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Sums over clusters, (G, labels), and the clusters' sizes, (G,)."""
        clusters = self.scored.scores[self.scored.original][task].clusters
        items_LI = np.stack([self.scored.items(label, task) for label in labels])
        _, which = np.unique(clusters or np.arange(items_LI.shape[1]), return_inverse=True)
        return np.stack([np.bincount(which, weights=row) for row in items_LI], axis=1), np.bincount(which).astype(float)

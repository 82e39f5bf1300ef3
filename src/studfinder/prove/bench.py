"""The model and the windows that every test runs on, with what was seen so far: nothing is run twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from studfinder.edits import Edit, stream_of
from studfinder.measures import effects_of
from studfinder.models import LM
from studfinder.passes import BlockRuns, Stream
from studfinder.prove.rule import LOOKS

EditSet = tuple[Edit, ...]


@dataclass
class ProofBench:
    """What changes of a model do to the windows of the proof text, a few windows at a time.

    Attributes:
        kl, nll: by change, sums over each window's tokens, of the windows looked at so far.
        clean_nll: of the model as it is.
        tokens: scored positions of each window.
        looks: how many windows have been seen when something may be left.
        done, ahead: work done, and expected after the next look, in runs of a block over a window.
        work: the runs of blocks over a window that were counted.
    """

    lm: LM
    windows: list[list[int]]
    progress: Callable[[int, int], Any]
    kl: dict[EditSet, np.ndarray] = field(default_factory=dict)
    nll: dict[EditSet, np.ndarray] = field(default_factory=dict)
    clean_nll: np.ndarray = field(default_factory=lambda: np.zeros(0))
    done: float = 0.0
    ahead: float = 0.0
    work: float = 0.0
    _streams: dict[EditSet, Stream] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tokens = np.array([len(ids) - 1 for ids in self.windows])
        self.looks = sorted({min(look, len(self.windows)) for look in LOOKS})
        block = self.lm.model.get_submodule(self.lm.anatomy.layers[0].block)
        matrix = self.lm.anatomy.vocabulary * self.lm.anatomy.hidden
        self._head = matrix / max(1, sum(p.numel() for p in block.parameters()))

    def look(self, changes: Iterable[EditSet], upto: int) -> None:
        """Run of the first `upto` windows what was not run yet, under each change; changes that have come equally far
        together, beside one clean stream."""
        groups: dict[int, list[EditSet]] = {}
        for change in dict.fromkeys(changes):
            groups.setdefault(len(self.kl.get(change, ())), []).append(change)
        groups.setdefault(len(self.clean_nll), [])
        groups = {seen: group for seen, group in groups.items() if seen < upto}
        left = sum(self.cost(group, upto - seen) for seen, group in groups.items())

        for seen, group in sorted(groups.items()):
            if not group and len(self.clean_nll) >= upto:
                continue
            cost, work = self.cost(group, upto - seen), BlockRuns()

            def advance(share: float, cost: float = cost) -> None:
                nonlocal left
                self.done += share * cost
                left -= share * cost
                self.progress(round(self.done), max(1, round(self.done + left + self.ahead)))

            streams = [self._stream(change) for change in group]
            found = effects_of(self.lm, self.windows[seen:upto], streams, advance=advance, work=work)
            self.work += work.blocks * (upto - seen)
            for row, change in enumerate(group):
                self.kl[change] = np.concatenate([self.kl.get(change, np.zeros(0)), found.kl[row]])
                self.nll[change] = np.concatenate([self.nll.get(change, np.zeros(0)), found.nll[row]])
            if len(self.clean_nll) < upto:
                self.clean_nll = np.concatenate([self.clean_nll[:seen], found.clean_nll])

    def cost(self, changes: Iterable[EditSet], windows: float) -> float:
        """What changes and the clean model beside them take, about; the head counts as so many blocks as it has
        numbers."""
        depth = len(self.lm.anatomy.layers)
        firsts = [0, *(max(0, self._stream(change).first) for change in changes)]
        return windows * sum(depth - first + self._head for first in firsts)

    @property
    def clean_perplexity(self) -> float:
        """Perplexity of the clean model; infinite where a float has no room for it."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.clean_nll.sum() / self.tokens[: len(self.clean_nll)].sum()))

    def _stream(self, change: EditSet) -> Stream:
        if change not in self._streams:
            self._streams[change] = stream_of(self.lm, change)
        return self._streams[change]

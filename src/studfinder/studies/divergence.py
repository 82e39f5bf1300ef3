"""How far a changed model's next-token distribution is from the original's, on our proof text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from studfinder.measures import Scores
from studfinder.measures.divergence import Clean
from studfinder.models import LM
from studfinder.records import Interval
from studfinder.sites import kept_outputs, resumed
from studfinder.stats import ratio_interval
from studfinder.studies.scored import KL
from studfinder.texts import encode, proof_text


@dataclass(frozen=True)
class Divergence:
    """KL(original || changed) by window, or the difference of two of them.

    Attributes:
        sums: nats, summed over a window's positions.
        tokens: how many positions that are.
    """

    sums: np.ndarray
    tokens: np.ndarray

    @property
    def value(self) -> float:
        """Nats per token."""
        return float(self.sums.sum() / self.tokens.sum())

    def interval(self) -> Interval:
        """Nats per token, windows resampled."""
        return ratio_interval(self.sums, self.tokens)

    @classmethod
    def of(cls, scores: Scores) -> Divergence:
        """What a cell of a grid holds."""
        return cls(*(np.array(scores.items[name]) for name in ("kl", "tokens")))

    @classmethod
    def mean(cls, several: Sequence[Divergence]) -> Divergence:
        """Of several draws, window by window."""
        return cls(np.mean([one.sums for one in several], axis=0), several[0].tokens)

    def scores(self) -> Scores:
        """As scores, so that two changed models can be compared window by window."""
        return Scores(
            measure="KL(original || changed), nats per token",
            value=self.value,
            interval=self.interval(),
            items={"kl": tuple(self.sums.tolist()), "tokens": tuple(self.tokens.tolist())},
            text="studfinder-proof-1",
            better="lower",
        )

    def __sub__(self, other: Divergence) -> Divergence:
        return Divergence(self.sums - other.sums, self.tokens)

    def __getitem__(self, some: slice) -> Divergence:
        return Divergence(self.sums[some], self.tokens[some])


class Original:
    """What the original model says on pieces of our proof text, kept while changed models are held against it.

    Logits are kept in the model's own dtype.

    Args:
        pieces: at most so many; None is all.
        layers: keep what each block returns too, so that a change from block l on only costs the blocks from l on (see
            `above`).
    """

    name = KL

    def __init__(self, pieces: int | None = None, *, layers: bool = False) -> None:
        self.pieces, self.layers, self._start = pieces, layers, 0
        self.encoded: list[torch.Tensor] = []
        self._logits: list[torch.Tensor] = []
        self._blocks: list[Any] = []

    def see(self, lm: LM, windows: Sequence[Sequence[int]] = ()) -> None:
        """Read the original, on our proof text if no other windows are given; once."""
        if self.encoded:
            return
        windows = windows or encode(lm, proof_text()[: self.pieces])[0]
        self.encoded = [torch.tensor([list(ids)], device=lm.device) for ids in windows]
        with torch.no_grad():
            for ids_BT in self.encoded:
                with kept_outputs(lm, range(len(lm.anatomy.layers)) if self.layers else ()) as kept:
                    self._logits.append(lm.model(input_ids=ids_BT, use_cache=False).logits[0, :-1])
                self._blocks.append(kept)

    @contextmanager
    def above(self, start: int) -> Iterator[None]:
        """While this lasts, nothing differs below block `start`."""
        if start and not self.layers:
            raise ValueError("what blocks return was not kept")
        before, self._start = self._start, start
        try:
            yield
        finally:
            self._start = before

    def kl(self, lm: LM) -> Divergence:
        """KL(original || changed)."""
        found, start = [], self._start
        with torch.no_grad():
            for ids_BT, clean_TV, kept in zip(self.encoded, self._logits, self._blocks, strict=True):
                context: Any = resumed(lm, start, kept[start - 1]) if start else nullcontext()
                with context:
                    changed_TV = lm.model(input_ids=ids_BT, use_cache=False).logits[0, :-1]
                found.append(float(Clean(clean_TV, ids_BT[0, 1:]).against(changed_TV)[0]))
        return Divergence(np.array(found), np.array([ids_BT.shape[1] - 1 for ids_BT in self.encoded]))

    def scores(self, lm: LM) -> dict[str, Scores]:
        """The same, by what tables call it."""
        return {KL: self.kl(lm).scores()}

    def equal(self, lm: LM) -> list[bool]:
        """In which windows every logit is bit for bit the original's."""
        with torch.no_grad():
            return [
                torch.equal(clean_TV, lm.model(input_ids=ids_BT, use_cache=False).logits[0, :-1])
                for ids_BT, clean_TV in zip(self.encoded, self._logits, strict=True)
            ]

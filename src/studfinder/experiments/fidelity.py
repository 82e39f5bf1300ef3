"""How far a changed model's next-token distribution is from the original's, on our proof text."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
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

    def __sub__(self, other: Divergence) -> Divergence:
        return Divergence(self.sums - other.sums, self.tokens)

    def __getitem__(self, some: slice) -> Divergence:
        return Divergence(self.sums[some], self.tokens[some])


def over_draws(several: Sequence[Divergence]) -> Divergence:
    """The mean of several draws, window by window."""
    return Divergence(np.mean([one.sums for one in several], axis=0), several[0].tokens)


class Original:
    """What the original model says on windows of text, kept while changed models are held against it.

    Logits are kept in the model's own dtype. With `layers`, what each block returns is kept too, so that a change from
    block l on only costs the blocks from l on.
    """

    def __init__(self, lm: LM, encoded: Sequence[Sequence[int]], *, layers: bool = False) -> None:
        self.encoded = [torch.tensor([list(ids)], device=lm.device) for ids in encoded]
        self.tokens = np.array([len(ids) - 1 for ids in encoded])
        self._logits, self._blocks = [], []
        with torch.no_grad():
            for ids_BT in self.encoded:
                with kept_outputs(lm, range(len(lm.anatomy.layers)) if layers else ()) as kept:
                    self._logits.append(lm.model(input_ids=ids_BT, use_cache=False).logits[0, :-1])
                self._blocks.append(kept)

    def kl(self, lm: LM, start: int = 0) -> Divergence:
        """KL(original || changed).

        Args:
            start: the first block that differs; above 0 only with `layers`.
        """
        found = []
        with torch.no_grad():
            for ids_BT, clean_TV, kept in zip(self.encoded, self._logits, self._blocks, strict=True):
                context: Any = resumed(lm, start, kept[start - 1]) if start else nullcontext()
                with context:
                    changed_TV = lm.model(input_ids=ids_BT, use_cache=False).logits[0, :-1]
                found.append(float(Clean(clean_TV, ids_BT[0, 1:]).against(changed_TV)[0]))
        return Divergence(np.array(found), self.tokens)

    def equal(self, lm: LM) -> list[bool]:
        """In which windows every logit is bit for bit the original's."""
        with torch.no_grad():
            return [
                torch.equal(clean_TV, lm.model(input_ids=ids_BT, use_cache=False).logits[0, :-1])
                for ids_BT, clean_TV in zip(self.encoded, self._logits, strict=True)
            ]


def proof_windows(lm: LM, limit: int | None = None) -> list[list[int]]:
    """Token ids of the pieces of our proof text, at most so many."""
    return [list(ids) for ids in encode(lm, proof_text()[:limit])[0]]


def kl_scores(kl: Divergence) -> Scores:
    """Divergences as scores, so that two changed models can be compared window by window."""
    return Scores(
        measure="KL(original || changed), nats per token",
        value=kl.value,
        interval=kl.interval(),
        items={"kl": tuple(kl.sums.tolist()), "tokens": tuple(kl.tokens.tolist())},
        text="studfinder-proof-1",
        better="lower",
    )

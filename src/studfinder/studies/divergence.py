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
        name: what tables call it.
        skip: so many tokens at the start of each piece are left out, of what the model reads too.
        cuts: positions at which the KL is cut, into a score for each stretch between two of them, "KL, 0 to 7".
        layers: keep what each block returns too, so that a change from block l on only costs the blocks from l on (see
            `above`).
    """

    def __init__(
        self,
        pieces: int | None = None,
        *,
        layers: bool = False,
        name: str = KL,
        skip: int = 0,
        cuts: Sequence[int] = (),
    ) -> None:
        self.pieces, self.layers, self.name, self.skip, self.cuts = pieces, layers, name, skip, tuple(cuts)
        self._start = 0
        self.encoded: list[torch.Tensor] = []
        self._logits: list[torch.Tensor] = []
        self._blocks: list[Any] = []

    def see(self, lm: LM, windows: Sequence[Sequence[int]] = ()) -> None:
        """Read the original, on our proof text if no other windows are given; once."""
        if self.encoded:
            return
        windows = windows or encode(lm, proof_text()[: self.pieces])[0]
        self.encoded = [torch.tensor([list(ids[self.skip :])], device=lm.device) for ids in windows]
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
        return self._kl(lm, [slice(None)])[0]

    def _kl(self, lm: LM, stretches: Sequence[slice]) -> list[Divergence]:
        """The same for each stretch of positions; a piece that does not reach it counts nothing."""
        sums, start = np.zeros((len(stretches), len(self.encoded))), self._start
        tokens = np.zeros_like(sums)
        with torch.no_grad():
            for piece, ids_BT in enumerate(self.encoded):
                context: Any = resumed(lm, start, self._blocks[piece][start - 1]) if start else nullcontext()
                with context:
                    changed_TV = lm.model(input_ids=ids_BT, use_cache=False).logits[0, :-1]
                for place, here in enumerate(stretches):
                    clean_TV, next_T = self._logits[piece][here], ids_BT[0, 1:][here]
                    if len(next_T):
                        sums[place, piece] = float(Clean(clean_TV, next_T).against(changed_TV[here])[0].double().sum())
                        tokens[place, piece] = len(next_T)
        return [
            Divergence(nats[some], count[some])
            for nats, count in zip(sums, tokens, strict=True)
            if (some := count > 0).any()
        ]

    def scores(self, lm: LM) -> dict[str, Scores]:
        """The same, by what tables call it."""
        if not self.cuts:
            return {self.name: self.kl(lm).scores()}
        ends = list(zip(self.cuts, self.cuts[1:], strict=False))
        found = self._kl(lm, [slice(*both) for both in ends])
        return {f"{self.name}, {a} to {b - 1}": kl.scores() for (a, b), kl in zip(ends, found, strict=False)}

    def equal(self, lm: LM) -> list[bool]:
        """In which windows every logit is bit for bit the original's."""
        with torch.no_grad():
            return [
                torch.equal(clean_TV, lm.model(input_ids=ids_BT, use_cache=False).logits[0, :-1])
                for ids_BT, clean_TV in zip(self.encoded, self._logits, strict=True)
            ]

"""How far a changed model's next-token distribution is from the original's, on our proof text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from studfinder.measures import Scores, effects_of
from studfinder.measures.divergence import Clean, likeliest
from studfinder.measures.effects import batched
from studfinder.measures.perplexity import windows_of
from studfinder.models import LM
from studfinder.passes import Stream, carry
from studfinder.records import Interval
from studfinder.stats import ratio_interval
from studfinder.studies.scored import KL
from studfinder.texts import Batch, batches, check_ids, encode, proof_text

ReadParts = Callable[[Mapping[str, Callable[[], Any]]], list[Any]]


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
    """What the original model says on pieces of our proof text, held against what changed models say of them.

    Changed models that are streams are carried beside it in one reading. Of others every one is read by itself, and
    the original's logits are kept meanwhile, in its own dtype: to make them again of its last hidden states would take
    a fifth of each reading, and a change of the output matrix changes them.

    Args:
        pieces: at most so many; None is all.
        name: what tables call it.
        skip: so many tokens at the start of each piece are left out, of what the model reads too.
        cuts: positions at which the KL is cut, into a score for each stretch between two of them, "KL, 0 to 7".
    """

    def __init__(self, pieces: int | None = None, *, name: str = KL, skip: int = 0, cuts: Sequence[int] = ()) -> None:
        self.pieces, self.name, self.skip, self.cuts = pieces, name, skip, tuple(cuts)
        self._batches: list[Batch] = []
        self._logits: list[list[torch.Tensor]] = []

    def see(self, lm: LM, windows: Sequence[Sequence[int]] = ()) -> None:
        """Read the original, on our proof text if no other windows are given; once."""
        if not self._batches:
            self._batches = list(batches(self._windows(lm, windows)))
            self._logits = list(self._read(lm))

    def _windows(self, lm: LM, windows: Sequence[Sequence[int]] = ()) -> list[list[int]]:
        return [list(ids[self.skip :]) for ids in windows or encode(lm, proof_text()[: self.pieces])[0]]

    def _read(self, lm: LM) -> Iterator[list[torch.Tensor]]:
        """Logits at every position of a piece but the last, one piece of text after the other; see `Head.pieces`."""
        return _read(lm, self._batches)

    def streamed(
        self, lm: LM, streams: Sequence[Stream], read: ReadParts, advance: Callable[[float], Any]
    ) -> list[dict[str, Scores]]:
        """Scores of several streams beside the model as it is, in one reading.

        Args:
            read: given the parts of the reading, by name, does each, wherever, or knows what came of it.
            advance: told what share of the reading has been done since it was last told.
        """
        assert not self.cuts, "stretches are read one model after the other"
        windows = self._windows(lm)

        def part(some: Sequence[Sequence[int]]) -> Any:
            share = len(some) / len(windows)
            return effects_of(lm, some, streams, advance=lambda done: advance(done * share)).kl.tolist()

        cut = [(batch.prompts[0], batch.prompts[-1] + 1) for batch in batched(windows)]
        sums = read({f"pieces {a + 1} to {b}": partial(part, windows[a:b]) for a, b in cut})
        tokens = np.array([len(ids) - 1 for ids in windows])
        return [{self.name: Divergence(kl, tokens).scores()} for kl in np.concatenate(sums, axis=1)]

    def kl(self, lm: LM) -> Divergence:
        """KL(original || changed)."""
        return self._kl(lm, [slice(None)])[0]

    def _kl(self, lm: LM, stretches: Sequence[slice]) -> list[Divergence]:
        """The same for each stretch of positions; a piece that does not reach it counts nothing."""
        sums = np.zeros((len(stretches), len(self._batches)))
        tokens = np.zeros_like(sums)
        for piece, changed in enumerate(self._read(lm)):
            clean, next_T = self._logits[piece], self._batches[piece].input_ids_BT[0, 1:]
            for place, here in enumerate(stretches):
                if len(next_T[here]):
                    own, other = ([words[here] for words in logits] for logits in (clean, changed))
                    kl_T, _ = Clean(own, next_T[here]).against(other)
                    sums[place, piece], tokens[place, piece] = float(kl_T.double().sum()), len(kl_T)
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
        both = zip(self._logits, self._read(lm), strict=True)
        return [all(map(torch.equal, clean, changed)) for clean, changed in both]


class Beside:
    """`kl` and `agreement` of a scorecard: what a model says on a text, held against what the baseline says.

    Args:
        name: "kl" or "agreement", with a text behind a colon; our proof text without one.
        original: the baseline; None is the grid's model before it is changed.
        limit: windows at most.
    """

    def __init__(self, name: str, original: LM | None = None, limit: int | None = None) -> None:
        self.name, self.original, self.limit = name, original, limit
        self.kind, _, self._text = name.partition(":")
        self._seen: list[list[torch.Tensor]] = []
        self._batches: list[Batch] = []
        self._on = ""

    def see(self, lm: LM) -> None:
        """Read the baseline, once."""
        if not self._batches:
            own = self.original or lm
            self._on, windows = windows_of(own, self._text or "proof", limit=self.limit)
            self._batches = list(batches(windows))
            self._seen = list(_read(own, self._batches))

    def scores(self, lm: LM) -> dict[str, Scores]:
        """See `Watch`."""
        check_ids(lm, [batch.input_ids_BT[0].tolist() for batch in self._batches])
        sums, tokens = [], []
        for batch, clean, other in zip(self._batches, self._seen, _read(lm, self._batches), strict=True):
            next_T = batch.input_ids_BT[0, 1:]
            value_T = (
                Clean(clean, next_T).against(other)[0] if self.kind == "kl" else likeliest(clean) == likeliest(other)
            )
            sums.append(float(value_T.double().sum()))
            tokens.append(len(next_T))
        interval = ratio_interval(np.array(sums), np.array(tokens))
        what = "KL(baseline || model), nats per token" if self.kind == "kl" else "same likeliest token as the baseline"
        found = Scores(
            measure=what,
            value=interval.value,
            interval=interval,
            items={"kl": tuple(sums), "tokens": tuple(map(float, tokens))},  # a mean over tokens, whichever it is
            text=self._on,
            better="lower" if self.kind == "kl" else "higher",
        )
        return {self.name: found}


def _read(lm: LM, cut: Sequence[Batch]) -> Iterator[list[torch.Tensor]]:
    """Logits at every position of a window but the last; see `Head.pieces`."""
    return (list(ends.pieces((0, slice(0, -1)))) for ends in carry(lm, cut))

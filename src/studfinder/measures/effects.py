"""What changes of a model do to its next-token distributions: many of them in one reading (see `passes`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from studfinder.edits import Edit, stream_of
from studfinder.errors import NotApplicable
from studfinder.measures.divergence import Clean
from studfinder.models import LM
from studfinder.passes import BlockRuns, Ends, Stream, carry
from studfinder.records import Interval
from studfinder.sites import check_causal
from studfinder.stats import crossed, ratio_interval
from studfinder.texts import Batch, batches, check_ids

_TOGETHER = 512
"""Tokens that go through a block together: fewer leave cores idle, more leave their caches."""

_LOGITS = 1 << 24
"""Logits that are held at a time: 64 MB in fp32."""


@dataclass(frozen=True)
class Effects:
    """What changes did, by window.

    Attributes:
        kl: sum over a window's positions of KL(clean || changed) in nats, shape (changes, windows).
        nll: sum of the changed model's negative log-likelihood, shape (changes, windows).
        clean_nll: of the clean model, shape (windows,).
        tokens: scored positions, shape (windows,).
    """

    kl: np.ndarray
    nll: np.ndarray
    clean_nll: np.ndarray
    tokens: np.ndarray

    def kl_interval(self, edit: int, level: float = 0.95, minus: int | None = None) -> Interval:
        """KL per token of a change, or by how much it exceeds that of another."""
        sums = self.kl[edit] if minus is None else self.kl[edit] - self.kl[minus]
        return ratio_interval(sums, self.tokens, level=level)

    def null_interval(self, nulls: Sequence[int], level: float = 0.95, of: int | None = None) -> Interval:
        """Mean KL per token of several draws of a null edit (their places among the changes), or by how much that of
        the edit it is `of` exceeds it; windows and draws are both resampled."""
        sums = {"null": self.kl[list(nulls)], "tokens": self.tokens[None].astype(float)}
        if of is None:
            return crossed(lambda mean: mean["null"] / mean["tokens"], sums, level=level, what="windows")
        sums["kl"] = self.kl[of][None]
        return crossed(lambda mean: (mean["kl"] - mean["null"]) / mean["tokens"], sums, level=level, what="windows")

    def perplexity_ratio(self, edit: int, level: float = 0.95) -> Interval:
        """Perplexity with the change over perplexity without."""
        return ratio_interval(self.nll[edit] - self.clean_nll, self.tokens, level=level, exponential=True)

    @property
    def clean_perplexity(self) -> float:
        """Perplexity of the clean model; infinite where a float has no room for it."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.clean_nll.sum() / self.tokens.sum()))


def effects_of(
    lm: LM,
    encoded: Sequence[Sequence[int]],
    variants: Sequence[Sequence[Edit] | Stream],
    *,
    advance: Callable[[float], Any] = lambda share: None,
    work: BlockRuns | None = None,
) -> Effects:
    """Measure several changes of a model against it as it is, each on its own, in one reading of the text.

    Args:
        encoded: windows of token ids; each is scored on all tokens but its first.
        variants: sets of edits, or streams.
        advance: told what share of the work has been done since it was last told.
        work: counts the blocks that are run.

    Raises:
        StudfinderError: no windows, a window of fewer than two tokens, ids beyond the embedding, a model that is not
            causal, or an edit that changes nothing.
    """
    _check_windows(lm, encoded)
    streams = [one if isinstance(one, Stream) else stream_of(lm, one) for one in variants]
    found = _Sums(len(streams), encoded)
    for ends in carry(lm, batched(encoded), streams, advance=advance, work=work):
        found.take(ends.batch, lm.anatomy.vocabulary, ends.pieces, _each(ends))
    return found.effects()


def between(lm: LM, other: LM, encoded: Sequence[Sequence[int]]) -> Effects:
    """How another model's next-token distributions differ from a model's: KL(lm || other), as `effects_of`
    for one change.

    Args:
        other: of the same vocabulary.
        encoded: windows of token ids; each is scored on all tokens but its first.

    Raises:
        StudfinderError: no windows, or a window of fewer than two tokens.
    """
    _check_windows(lm, encoded)
    found, cut = _Sums(1, encoded), batched(encoded)
    for ends, others in zip(carry(lm, cut), carry(other, cut), strict=True):
        found.take(ends.batch, lm.anatomy.vocabulary, ends.pieces, [others.pieces])
    return found.effects()


_Logits = Callable[[Any], Iterable[torch.Tensor]]


def _each(ends: Ends) -> Iterable[_Logits]:
    return [partial(ends.pieces, stream=number) for number in range(len(ends.changed))]


def _check_windows(lm: LM, encoded: Sequence[Sequence[int]]) -> None:
    if not encoded or min(len(ids) for ids in encoded) < 2:
        raise NotApplicable("there is nothing to score", expected="windows of at least two tokens")
    check_causal(lm, "next-token distributions")
    check_ids(lm, encoded)


def batched(encoded: Sequence[Sequence[int]]) -> list[Batch]:
    """Windows of token ids in batches that go through a block together."""
    return list(batches(encoded, max(1, _TOGETHER // max(len(ids) for ids in encoded))))


class _Sums:
    """Sums over each window's positions."""

    def __init__(self, changes: int, encoded: Sequence[Sequence[int]]) -> None:
        self.kl = np.zeros((changes, len(encoded)))
        self.nll, self.clean_nll = np.zeros_like(self.kl), np.zeros(len(encoded))
        self.tokens = np.array([len(ids) - 1 for ids in encoded])

    def take(self, batch: Batch, vocabulary: int, clean: _Logits, changed: Iterable[_Logits]) -> None:
        """Add a batch, a slice of its positions after the other: all logits at once would not fit."""
        row_N = torch.cat([torch.full((length - 1,), row) for row, length in enumerate(batch.lengths)])
        place_N = torch.cat([torch.arange(length - 1) for length in batch.lengths])
        step = max(1, _LOGITS // vocabulary)
        for start in range(0, len(row_N), step):
            rows = row_N[start : start + step], place_N[start : start + step]
            windows = np.array(batch.prompts)[rows[0].numpy()]
            own = Clean(clean(rows), batch.input_ids_BT[rows[0], rows[1] + 1])
            np.add.at(self.clean_nll, windows, own.nll_T.double().cpu().numpy())
            for number, logits in enumerate(changed):
                kl_T, nll_T = own.against(logits(rows))
                np.add.at(self.kl[number], windows, kl_T.double().cpu().numpy())
                np.add.at(self.nll[number], windows, nll_T.double().cpu().numpy())

    def effects(self) -> Effects:
        return Effects(self.kl, self.nll, self.clean_nll, self.tokens)

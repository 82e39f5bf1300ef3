"""Many edits, one model: how each changes the next-token distribution, with the shared work done once.

For each batch of windows the clean model runs once. Every edit then starts at its own layer from the clean residual
stream, because nothing below an edit changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from studfinder.edits import Edit, edited, edits_of, layer_of
from studfinder.errors import NotApplicable
from studfinder.measures.asked import Advance
from studfinder.measures.divergence import Clean
from studfinder.models import LM
from studfinder.records import Interval
from studfinder.sites import check_causal, kept_outputs, replacing, resumed
from studfinder.stats import ratio_interval
from studfinder.texts import Batch, batches, check_ids

_LOGITS = 1 << 26
"""Logits of a batch of windows: 64 M, a quarter of a gigabyte in fp32."""


@dataclass(frozen=True)
class Effects:
    """What edits did, by window.

    Attributes:
        kl: sum over a window's positions of KL(clean || edited) in nats, shape (edits, windows).
        nll: sum of the edited model's negative log-likelihood, shape (edits, windows).
        clean_nll: of the clean model, shape (windows,).
        tokens: scored positions, shape (windows,).
    """

    kl: np.ndarray
    nll: np.ndarray
    clean_nll: np.ndarray
    tokens: np.ndarray

    def kl_interval(self, edit: int, level: float = 0.95, minus: int | None = None) -> Interval:
        """KL per token of an edit, or by how much it exceeds that of another."""
        sums = self.kl[edit] if minus is None else self.kl[edit] - self.kl[minus]
        return ratio_interval(sums, self.tokens, level=level)

    def perplexity_ratio(self, edit: int, level: float = 0.95) -> Interval:
        """Perplexity with the edit over perplexity without."""
        return ratio_interval(self.nll[edit] - self.clean_nll, self.tokens, level=level, exponential=True)

    @property
    def clean_perplexity(self) -> float:
        """Perplexity of the clean model; infinite where a float has no room for it."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.clean_nll.sum() / self.tokens.sum()))


def next_token(lm: LM, encoded: Sequence[Sequence[int]], edits: Sequence[Edit]) -> Effects:
    """How one set of edits shifts the next-token distribution on windows of token ids."""
    return sweep(lm, encoded, [edits])


def sweep(
    lm: LM, encoded: Sequence[Sequence[int]], variants: Sequence[Sequence[Edit]], *, progress: Advance | None = None
) -> Effects:
    """Measure several sets of edits against the clean model, each on its own.

    Args:
        encoded: windows of token ids; each is scored on all tokens but its first.
        variants: sets of edits.
        progress: called with the number of (variant, batch) pairs done.

    Raises:
        StudfinderError: no windows, a window of fewer than two tokens, ids beyond the embedding, or a model that is not
            causal.
    """
    _check_windows(lm, encoded)
    variants = [edits_of(lm, edits) for edits in variants]
    # Under edits of sites from outside, blocks that are passed by would show their outputs to be replaced twice.
    starts = [0 if replacing(lm) else layer_of(lm, edits) for edits in variants]

    def passes(batch: Batch) -> Iterator[torch.Tensor]:
        with kept_outputs(lm, sorted({start - 1 for start in starts if start})) as kept:
            logits = _logits(lm, batch)
        yield logits
        del logits  # or there would be three at a time
        for edits, start in zip(variants, starts, strict=True):
            with edited(lm, edits), resumed(lm, start, kept.get(start - 1)):
                logits = _logits(lm, batch)
            yield logits

    return _effects(lm, encoded, len(variants), passes, progress)


def between(lm: LM, other: LM, encoded: Sequence[Sequence[int]]) -> Effects:
    """How another model's next-token distributions differ from a model's: KL(lm || other), as `sweep` for one variant.

    Args:
        other: of the same vocabulary.
        encoded: windows of token ids; each is scored on all tokens but its first.

    Raises:
        StudfinderError: no windows, or a window of fewer than two tokens.
    """
    _check_windows(lm, encoded)
    return _effects(lm, encoded, 1, lambda batch: (_logits(one, batch).to(lm.device) for one in (lm, other)))


def _check_windows(lm: LM, encoded: Sequence[Sequence[int]]) -> None:
    if not encoded or min(len(ids) for ids in encoded) < 2:
        raise NotApplicable("there is nothing to score", expected="windows of at least two tokens")
    check_causal(lm, "next-token distributions")
    check_ids(lm, encoded)


def _effects(
    lm: LM,
    encoded: Sequence[Sequence[int]],
    variants: int,
    passes: Callable[[Batch], Iterator[torch.Tensor]],
    progress: Advance | None = None,
) -> Effects:
    """What variants differ in, given the logits of a batch: the clean model's, then each variant's."""
    kl = np.zeros((variants, len(encoded)))
    nll, clean_nll = np.zeros_like(kl), np.zeros(len(encoded))
    size = max(1, _LOGITS // (lm.anatomy.vocabulary * max(len(ids) for ids in encoded)))
    with torch.no_grad():
        for batch in batches(encoded, size):
            where, made = list(batch.prompts), passes(batch)
            clean = [Clean(*window) for window in _windows(next(made), batch)]
            clean_nll[where] = [float(one.nll) for one in clean]
            for number, logits in enumerate(made):
                kl[number, where], nll[number, where] = _held_against(clean, logits, batch)
                if progress is not None:
                    progress(1)
    return Effects(kl, nll, clean_nll, np.array([len(ids) - 1 for ids in encoded]))


def _logits(lm: LM, batch: Batch) -> torch.Tensor:
    # Padding is on the right, where real tokens cannot see it; the mask is for edits that take statistics over tokens.
    mask = None if batch.mask_BT is None else batch.mask_BT.long().to(lm.device)
    return lm.model(input_ids=batch.input_ids_BT.to(lm.device), attention_mask=mask, use_cache=False).logits


def _windows(logits_BTV: torch.Tensor, batch: Batch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of each window the logits at its scored positions, and the tokens that come next there."""
    return [
        (logits_BTV[row, : length - 1], batch.input_ids_BT[row, 1:length]) for row, length in enumerate(batch.lengths)
    ]


def _held_against(clean: list[Clean], logits_BTV: torch.Tensor, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """KL(clean || edited) and the edited negative log-likelihood, summed over each window's positions, shape (B,)."""
    found = [one.against(logits_TV) for one, (logits_TV, _) in zip(clean, _windows(logits_BTV, batch), strict=True)]
    kl_B, nll_B = (torch.stack(sums).cpu().numpy() for sums in zip(*found, strict=True))
    return kl_B, nll_B

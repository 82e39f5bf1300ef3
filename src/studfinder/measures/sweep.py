"""Many edits, one model: how each changes the next-token distribution, with the shared work done once.

For each batch of windows the clean model runs once. Every edit then starts at its own layer from the clean residual
stream, because nothing below an edit changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from studfinder.edits import Edit, edited, edits_of, layer_of
from studfinder.errors import NotApplicable
from studfinder.models import LM
from studfinder.records import Interval
from studfinder.sites import check_causal, kept_outputs, replacing, resumed
from studfinder.stats import ratio_interval
from studfinder.texts import Batch, batches, check_ids

_LOGITS = 1 << 26
"""Logits of a batch of windows: 64 M, a quarter of a gigabyte in fp32."""

_IN_CACHE = 1 << 19
"""Logits that are worked on at a time on a CPU: 2 MB in fp32."""


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
    lm: LM,
    encoded: Sequence[Sequence[int]],
    variants: Sequence[Sequence[Edit]],
    *,
    progress: Callable[[int], Any] | None = None,
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
    kl = np.zeros((len(variants), len(encoded)))
    nll = np.zeros_like(kl)
    clean_nll = np.zeros(len(encoded))
    size = max(1, _LOGITS // (lm.anatomy.vocabulary * max(len(ids) for ids in encoded)))
    with torch.no_grad():
        for batch in batches(encoded, size):
            where = list(batch.prompts)
            with kept_outputs(lm, sorted({start - 1 for start in starts if start})) as kept:
                clean = _Clean(_logits(lm, batch), batch)
            clean_nll[where] = clean.nll
            for number, (edits, start) in enumerate(zip(variants, starts, strict=True)):
                with edited(lm, edits), resumed(lm, start, kept.get(start - 1)):
                    logits = _logits(lm, batch)
                kl[number, where], nll[number, where] = clean.against(logits)
                if progress is not None:
                    progress(1)
    return Effects(kl, nll, clean_nll, np.array([len(ids) - 1 for ids in encoded]))


def between(
    lm: LM, other: LM, encoded: Sequence[Sequence[int]], *, progress: Callable[[int], Any] | None = None
) -> Effects:
    """How another model's next-token distributions differ from a model's: KL(lm || other), as `sweep` for one variant.

    Args:
        other: of the same vocabulary.
        encoded: windows of token ids; each is scored on all tokens but its first.
        progress: called with the number of windows done.

    Raises:
        StudfinderError: no windows, or a window of fewer than two tokens.
    """
    _check_windows(lm, encoded)
    kl, nll, clean_nll = np.zeros((1, len(encoded))), np.zeros((1, len(encoded))), np.zeros(len(encoded))
    size = max(1, _LOGITS // (lm.anatomy.vocabulary * max(len(ids) for ids in encoded)))
    with torch.no_grad():
        for batch in batches(encoded, size):
            where = list(batch.prompts)
            clean = _Clean(_logits(lm, batch), batch)
            clean_nll[where] = clean.nll
            kl[0, where], nll[0, where] = clean.against(_logits(other, batch).to(lm.device))
            if progress is not None:
                progress(len(where))
    return Effects(kl, nll, clean_nll, np.array([len(ids) - 1 for ids in encoded]))


def _check_windows(lm: LM, encoded: Sequence[Sequence[int]]) -> None:
    if not encoded or min(len(ids) for ids in encoded) < 2:
        raise NotApplicable("there is nothing to score", expected="windows of at least two tokens")
    check_causal(lm, "next-token distributions")
    check_ids(lm, encoded)


def _logits(lm: LM, batch: Batch) -> torch.Tensor:
    # Padding is on the right, where real tokens cannot see it; the mask is for edits that take statistics over tokens.
    mask = None if batch.mask_BT is None else batch.mask_BT.long().to(lm.device)
    return lm.model(input_ids=batch.input_ids_BT.to(lm.device), attention_mask=mask, use_cache=False).logits


class _Clean:
    """The clean model's distributions over one batch, against which edited ones are held."""

    def __init__(self, logits_BTV: torch.Tensor, batch: Batch) -> None:
        self.lengths = batch.lengths
        self.targets = [
            batch.input_ids_BT[row, 1:length].to(logits_BTV.device) for row, length in enumerate(self.lengths)
        ]
        self.probabilities, self.minus_entropy, nll = [], [], []
        for row, length in enumerate(self.lengths):
            p_TV = torch.empty(length - 1, logits_BTV.shape[-1], device=logits_BTV.device)
            entropy, loss = [], []
            for here in _blocks(logits_BTV, length):
                log_p_RV = logits_BTV[row, here].float().log_softmax(dim=-1)
                loss.append(-log_p_RV.gather(1, self.targets[row][here, None])[:, 0].double())
                torch.exp(log_p_RV, out=p_TV[here])
                entropy.append(torch.linalg.vecdot(p_TV[here], log_p_RV))
            nll.append(torch.cat(loss).sum())
            self.minus_entropy.append(torch.cat(entropy))
            self.probabilities.append(p_TV)
        self.nll = torch.stack(nll).cpu().numpy()

    def against(self, logits_BTV: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """KL(clean || edited) and the edited negative log-likelihood, summed over each row's positions, shape (B,)."""
        kl, nll = [], []
        for row, length in enumerate(self.lengths):
            totals, own, cross = [], [], []
            for here in _blocks(logits_BTV, length):
                logits_RV = logits_BTV[row, here].float()
                totals.append(logits_RV.logsumexp(dim=-1))
                own.append(logits_RV.gather(1, self.targets[row][here, None])[:, 0])
                cross.append(torch.linalg.vecdot(self.probabilities[row][here], logits_RV))
            total_T = torch.cat(totals)
            nll.append((total_T - torch.cat(own)).double().sum())
            # sum p (log p - log q), with log q = logit - total: the clean half is known already. fp32 rounding can
            # make a tiny divergence negative; a divergence is not.
            kl.append((self.minus_entropy[row] + total_T - torch.cat(cross)).clamp_min(0).double().sum())
        return torch.stack(kl).cpu().numpy(), torch.stack(nll).cpu().numpy()


def _blocks(logits_BTV: torch.Tensor, length: int) -> list[slice]:
    """The scored positions of a row, on a CPU so few at a time that their logits stay in its cache."""
    step = max(1, _IN_CACHE // logits_BTV.shape[-1]) if logits_BTV.device.type == "cpu" else length
    return [slice(begin, min(begin + step, length - 1)) for begin in range(0, length - 1, step)]

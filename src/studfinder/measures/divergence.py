"""The one definition of KL: KL(clean || other) in nats, from logits in fp32, to be summed over scored positions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from studfinder.passes.head import WORDS_AT_ONCE

_IN_CACHE = 1 << 19
"""Logits that are worked on at a time on a CPU: 2 MB in fp32."""


class Clean:
    """A model's next-token distributions at T positions, against which those of others are held.

    Logits come in pieces, those of some words (T,W) after those of others, of any dtype; see `Head.pieces`.

    Attributes:
        nll_T: its negative log-likelihood of the tokens that come next, fp32.
    """

    def __init__(self, pieces: Iterable[torch.Tensor], next_T: torch.Tensor) -> None:
        """The logits, and the token that comes next at each of their positions."""
        logits = list(_cut(pieces))
        self.device = logits[0].device
        self._next_T = next_T.to(self.device)
        totals = [torch.cat([piece[here].float().logsumexp(dim=-1) for here in _parts(piece)]) for piece in logits]
        total_T = torch.stack(totals).logsumexp(dim=0)
        self._p = [torch.empty(piece.shape, device=self.device) for piece in logits]
        for p_TW, piece in zip(self._p, logits, strict=True):
            for here in _parts(piece):
                torch.exp(piece[here].float() - total_T[here, None], out=p_TW[here])
        self._entropy_T, self.nll_T = self._cross_entropy(logits)

    def against(self, pieces: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """KL(clean || other) and the other's negative log-likelihood at each position, (T,) fp32; of equal logits the
        KL is 0 exactly, and the likelihood the same."""
        cross_T, nll_T = self._cross_entropy(pieces)
        # fp32 rounding can make a tiny divergence negative; a divergence is not.
        return (cross_T - self._entropy_T).clamp_min(0), nll_T

    def _cross_entropy(self, pieces: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """-sum p log q at each position, with log q = logit - total, and the negative log-likelihood under q."""
        totals, means, first = [], [], 0
        label_T = torch.empty(len(self._next_T), device=self.device)
        for p_TW, piece in zip(self._p, _cut(pieces), strict=True):
            total_T, mean_T = (torch.empty(len(piece), device=self.device) for _ in range(2))
            for here in _parts(piece):
                logits_RW = piece[here].float().to(self.device)
                total_T[here] = logits_RW.logsumexp(dim=-1)
                mean_T[here] = torch.linalg.vecdot(p_TW[here], logits_RW)
            totals.append(total_T)
            means.append(mean_T)
            (own_N,) = ((self._next_T >= first) & (self._next_T < first + piece.shape[1])).nonzero(as_tuple=True)
            label_T[own_N] = piece[own_N, self._next_T[own_N] - first].float()
            first += piece.shape[1]
        total_T = torch.stack(totals).logsumexp(dim=0)
        return total_T - torch.stack(means).sum(dim=0), total_T - label_T


def likeliest(pieces: Iterable[torch.Tensor]) -> torch.Tensor:
    """The likeliest word at each position, (T,), of logits in pieces of words (T,W)."""
    tops, first = [], 0
    for piece in pieces:
        value_T, place_T = piece.float().max(dim=-1)
        tops.append((value_T, place_T + first))
        first += piece.shape[-1]
    best_T = torch.stack([value_T for value_T, _ in tops]).argmax(dim=0)
    return torch.stack([place_T for _, place_T in tops]).gather(0, best_T[None])[0]


def _cut(pieces: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """What comes in larger pieces is cut like the rest: of two models' logits one may."""
    return (part for piece in pieces for part in piece.split(WORDS_AT_ONCE, dim=1))


def _parts(logits_TW: torch.Tensor) -> Iterator[slice]:
    """Runs of positions that are worked on at a time."""
    count, width = logits_TW.shape
    step = max(1, _IN_CACHE // width) if logits_TW.device.type == "cpu" else max(1, count)
    return (slice(start, start + step) for start in range(0, count, step))

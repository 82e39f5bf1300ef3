"""The one definition of KL: KL(clean || other) in nats, from logits in fp32, to be summed over scored positions."""

from __future__ import annotations

import torch

_IN_CACHE = 1 << 19
"""Logits that are worked on at a time on a CPU: 2 MB in fp32."""


class Clean:
    """A model's next-token distributions at T positions, against which those of others are held.

    Attributes:
        nll_T: its negative log-likelihood of the tokens that come next, fp32.
    """

    def __init__(self, logits_TV: torch.Tensor, next_T: torch.Tensor) -> None:
        """Logits of any dtype, and the token that comes next at each of their positions."""
        self.device = logits_TV.device
        self._next_T = next_T.to(self.device)
        self._p_TV = torch.empty(logits_TV.shape, device=self.device)
        self._entropy_T, self.nll_T = self._cross_entropy(logits_TV, own=True)

    def against(self, logits_TV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """KL(clean || other) and the other's negative log-likelihood at each position, (T,) fp32; of equal logits the
        KL is 0 exactly, and the likelihood the same."""
        cross_T, nll_T = self._cross_entropy(logits_TV)
        # fp32 rounding can make a tiny divergence negative; a divergence is not.
        return (cross_T - self._entropy_T).clamp_min(0), nll_T

    def _cross_entropy(self, logits_TV: torch.Tensor, own: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """-sum p log q at each position, with log q = logit - total, and the negative log-likelihood under q."""
        count, width = logits_TV.shape
        step = max(1, _IN_CACHE // width) if logits_TV.device.type == "cpu" else count
        cross, nll = [], []
        for start in range(0, count, step):
            here = slice(start, start + step)
            logits_RV = logits_TV[here].float()
            total_R = logits_RV.logsumexp(dim=-1)
            if own:
                torch.exp(logits_RV - total_R[:, None], out=self._p_TV[here])
            cross.append(total_R - torch.linalg.vecdot(self._p_TV[here], logits_RV))
            nll.append(total_R - logits_RV.gather(1, self._next_T[here, None])[:, 0])
        return torch.cat(cross), torch.cat(nll)

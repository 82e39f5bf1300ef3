"""How far a changed model's next-token distribution is from the original's, on our proof text."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from studfinder.measures import Scores, scored
from studfinder.models import LM
from studfinder.sites import kept_outputs, resumed
from studfinder.texts import encode, proof_text


class Original:
    """What the original model says on windows of text, kept while changed models are held against it.

    Logits are kept in the model's own dtype. With `layers`, what each block returns is kept too, so that a change from
    block l on only costs the blocks from l on.
    """

    def __init__(self, lm: LM, encoded: Sequence[Sequence[int]], *, layers: bool = False) -> None:
        self.encoded = [torch.tensor([list(ids)], device=lm.device) for ids in encoded]
        self._logits, self._blocks = [], []
        with torch.no_grad():
            for ids_BT in self.encoded:
                with kept_outputs(lm, range(len(lm.anatomy.layers)) if layers else ()) as kept:
                    self._logits.append(lm.model(input_ids=ids_BT, use_cache=False).logits[0, :-1])
                self._blocks.append(kept)

    def kl(self, lm: LM, start: int = 0) -> np.ndarray:
        """KL(original || changed) in nats, mean over the positions of each window, shape (windows,).

        Args:
            start: the first block that differs; above 0 only with `layers`.
        """
        found = []
        with torch.no_grad():
            for ids_BT, clean_TV, kept in zip(self.encoded, self._logits, self._blocks, strict=True):
                context: Any = resumed(lm, start, kept[start - 1]) if start else nullcontext()
                with context:
                    changed_TV = lm.model(input_ids=ids_BT, use_cache=False).logits[0, :-1]
                found.append(_divergence(clean_TV, changed_TV))
        return np.array(found)

    def equal(self, lm: LM) -> list[bool]:
        """In which windows every logit is bit for bit the original's."""
        with torch.no_grad():
            return [
                torch.equal(clean_TV, lm.model(input_ids=ids_BT, use_cache=False).logits[0, :-1])
                for ids_BT, clean_TV in zip(self.encoded, self._logits, strict=True)
            ]


def _divergence(clean_TV: torch.Tensor, changed_TV: torch.Tensor) -> float:
    log_p_TV, log_q_TV = (logits.float().log_softmax(dim=-1) for logits in (clean_TV, changed_TV))
    kl_T = (log_p_TV.exp() * (log_p_TV - log_q_TV)).sum(dim=-1)
    return float(kl_T.clamp_min(0).double().mean())  # fp32 rounding can make a tiny divergence negative


def proof_windows(lm: LM, limit: int | None = None) -> list[list[int]]:
    """Token ids of the pieces of our proof text, at most so many."""
    return [list(ids) for ids in encode(lm, proof_text()[:limit])[0]]


def kl_scores(kl: np.ndarray) -> Scores:
    """Divergences by window as scores, so that two changed models can be compared window by window."""
    return scored("KL(original || changed), nats per token", kl.tolist(), text="studfinder-proof-1", better="lower")

"""What a checkpoint lost against what it was made from: over positions, and what putting one part back wins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from studfinder.edits import replaced_stream
from studfinder.measures.divergence import Clean, likeliest
from studfinder.measures.effects import batched
from studfinder.models import LM
from studfinder.passes import Ends, carry
from studfinder.records import Interval
from studfinder.stats import ratio_interval

_LOGITS = 1 << 24
"""Logits that are held at a time: 64 MB in fp32."""


@dataclass(frozen=True)
class Losses:
    """Of a model and another one on the same windows.

    Attributes:
        kl_WT: KL(original || made) in nats, (windows, positions), NaN behind a window's end.
        back_WT: the same the other way round.
        agree_WT: 1 where both find the same token likeliest.
        nll_WT, made_nll_WT: negative log-likelihood of the token that comes next.
        restored_SW: KL(original || made with a part put back), summed over a window's positions, (parts, windows).
    """

    kl_WT: np.ndarray
    back_WT: np.ndarray
    agree_WT: np.ndarray
    nll_WT: np.ndarray
    made_nll_WT: np.ndarray
    restored_SW: np.ndarray

    @property
    def tokens_W(self) -> np.ndarray:
        """Scored positions of each window."""
        return np.isfinite(self.nll_WT).sum(1)

    def per_token(self, what_WT: np.ndarray) -> Interval:
        """A mean over positions, windows resampled."""
        return ratio_interval(np.nansum(what_WT, 1), self.tokens_W)

    def won(self, part: int) -> Interval:
        """By how much a token's KL falls when a part is put back."""
        return ratio_interval(np.nansum(self.kl_WT, 1) - self.restored_SW[part], self.tokens_W)

    def left(self, part: int) -> Interval:
        """The KL a token that is left when a part is put back."""
        return ratio_interval(self.restored_SW[part], self.tokens_W)

    @property
    def perplexity_ratio(self) -> Interval:
        """Perplexity of what was made over that of the original, windows resampled."""
        return ratio_interval(np.nansum(self.made_nll_WT - self.nll_WT, 1), self.tokens_W, exponential=True)


def losses_of(
    original: LM,
    made: LM,
    windows: Sequence[Sequence[int]],
    parts: Sequence[Mapping[str, torch.Tensor]] = (),
    *,
    advance: Callable[[float], Any] = lambda share: None,
) -> Losses:
    """Read both models over the same windows, and the made one once more for every part that is put back.

    Args:
        windows: of token ids; each is scored on all tokens but its first.
        parts: of each what its parameters were, by name.
        advance: told what share of the work has been done since it was last told.
    """
    cut, longest = batched(windows), max(map(len, windows)) - 1
    filled = [np.full((len(windows), longest), np.nan) for _ in range(5)]
    kl, back, agree, nll, made_nll = filled
    found = Losses(kl, back, agree, nll, made_nll, np.zeros((len(parts), len(windows))))
    streams = [replaced_stream(made, part) for part in parts]
    for was, now in zip(carry(original, cut), carry(made, cut, streams, advance=advance), strict=True):
        _take(found, was, now)
    return found


def _take(found: Losses, was: Ends, now: Ends) -> None:
    batch = was.batch
    row_N = torch.cat([torch.full((length - 1,), row) for row, length in enumerate(batch.lengths)])
    place_N = torch.cat([torch.arange(length - 1) for length in batch.lengths])
    step = max(1, _LOGITS // was.blocks.lm.anatomy.vocabulary)
    for start in range(0, len(row_N), step):
        rows = row_N[start : start + step], place_N[start : start + step]
        at = np.array(batch.prompts)[rows[0].numpy()], rows[1].numpy()
        next_T = batch.input_ids_BT[rows[0], rows[1] + 1]
        clean, other = Clean(was.pieces(rows), next_T), Clean(now.pieces(rows), next_T)
        kl_T, nll_T = clean.against(now.pieces(rows))
        found.kl_WT[at], found.made_nll_WT[at] = kl_T.cpu().numpy(), nll_T.cpu().numpy()
        found.back_WT[at] = other.against(was.pieces(rows))[0].cpu().numpy()
        found.nll_WT[at] = clean.nll_T.cpu().numpy()
        found.agree_WT[at] = (likeliest(was.pieces(rows)) == likeliest(now.pieces(rows))).float().cpu().numpy()
        for stream in range(len(now.changed)):
            kl_T, _ = clean.against(now.pieces(rows, stream=stream))
            np.add.at(found.restored_SW[stream], at[0], kl_T.double().cpu().numpy())

"""What is differentiated: log-likelihoods of labels, from logits of some positions at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from studfinder.texts import Batch

Objective = Callable[[torch.Tensor, Batch, torch.Tensor, torch.Tensor], torch.Tensor]
"""Given logits (N,V) of positions `place_N` of rows `row_N` of a batch, gives what these positions add to the sum that
is differentiated: one number, or several (D,), each differentiated by itself. It may be asked twice for the same
positions and must then give the same."""

NO_LABEL = -100


def likelihood(labels: Callable[[Batch], torch.Tensor] | None = None) -> Objective:
    """The summed log-likelihood of given labels.

    Args:
        labels: gives a batch's (B,T), the token to come after each position; NO_LABEL (-100) where none is scored. By
            default the text's own next tokens.
    """

    def of(logits_NV: torch.Tensor, batch: Batch, row_N: torch.Tensor, place_N: torch.Tensor) -> torch.Tensor:
        label_N = (labels or _next)(batch)[row_N, place_N].to(logits_NV.device)
        scored_N = label_N != NO_LABEL
        chosen_N = logits_NV.log_softmax(-1).gather(-1, label_N.clamp(0)[:, None])[:, 0]
        return torch.where(scored_N, chosen_N, 0.0).sum()[None]

    return of


def sampled_likelihood(draws: int = 1, seed: int = 0) -> Objective:
    """The summed log-likelihood of labels that the model itself draws, one at every token: the squares of its gradients
    are the diagonal of the Fisher information. Draws depend on the seed, on which window it is and on the position, and
    not on how windows are batched.

    Args:
        draws: so many labels at every token, each draw differentiated by itself.
    """

    def of(logits_NV: torch.Tensor, batch: Batch, row_N: torch.Tensor, place_N: torch.Tensor) -> torch.Tensor:
        logs_NV = logits_NV.log_softmax(-1)
        width = batch.input_ids_BT.shape[1]
        drawn = [
            [np.random.default_rng((seed, draw, one)).random(width) for draw in range(draws)] for one in batch.prompts
        ]
        uniform_BTD = torch.from_numpy(np.array(drawn)).movedim(1, 2)
        sums_NV = logs_NV.detach().double().exp().cumsum(-1)  # in fp32 the sum over a large vocabulary is too coarse
        at_ND = uniform_BTD[row_N, place_N].to(sums_NV.device) * sums_NV[:, -1:]
        label_ND = torch.searchsorted(sums_NV, at_ND, right=True).clamp(max=sums_NV.shape[-1] - 1)
        return logs_NV.gather(-1, label_ND).sum(0)

    return of


def _next(batch: Batch) -> torch.Tensor:
    ids_BT = batch.input_ids_BT.roll(-1, dims=1)
    last = torch.arange(ids_BT.shape[1]) >= torch.tensor(batch.lengths)[:, None] - 1
    return ids_BT.masked_fill(last, NO_LABEL)

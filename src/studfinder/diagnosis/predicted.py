"""What each part's difference is predicted to cost, from one backward pass on the original.

1/2 sum_i F_ii d_i^2 in nats per token, with d what a checkpoint's weights differ by and F from labels drawn from the
original's own distribution: the diagonal of `quantizers.sensitivity`, with a finished checkpoint's error for a
format's. It is good for small errors; of what is broken it says no more than that it is much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from studfinder.diagnosis.folded import FoldedOriginal
from studfinder.models import LM
from studfinder.passes import gradients, sampled_likelihood
from studfinder.texts import batches


def predicted_costs_of(
    original: LM,
    folded: FoldedOriginal,
    names: Sequence[str],
    windows: Sequence[Sequence[int]],
    *,
    advance: Callable[[float], Any] = lambda share: None,
) -> dict[str, float]:
    """By parameter, nats per token. Memory: as `gradients`, and the error of one parameter."""
    found, tokens = dict.fromkeys(names, 0.0), sum(map(len, windows))
    own = [name for name, _ in original.model.named_parameters() if name in found]
    total = (len(original.anatomy.layers) + 2) * len(windows)
    if own:
        for piece in gradients(original, list(batches(windows)), sampled_likelihood(), parameters=own):
            for name, gradient in piece.parameters.items():
                product = folded.error(name).to(gradient.device).mul_(gradient.nan_to_num(0, 0, 0))
                found[name] += float(product.square_().sum(dtype=torch.float64)) / (2 * tokens)
            advance(1 / total)
    return found

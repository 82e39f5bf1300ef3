"""Eight bits: what a trained model's loss becomes when weights and activations are rounded, window by window.

Quantizable Transformers (arXiv 2306.12929, section 5) quantises weights symmetrically and activations asymmetrically,
both with one range a tensor, activations with a static one from training data. Here the same is done to the matrices
inside the blocks and what enters them. Theirs rounds what leaves each matrix, embeddings, norms, scores, attention
weights and residual sums (all but head and gates), and its ranges are a running average or a percentile where ours are
the smallest and the largest number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from studfinder.models import LM
from studfinder.quantizers import RTN, ActivationScheme, Method, Scheme, WithActivations, quantized, rounded_stream

_WEIGHTS = RTN(scheme=Scheme(element="int8", block="tensor", narrow=True))
STATIC = "static per tensor"
WAYS: Mapping[str, Method] = {
    "weights only": _WEIGHTS,
    STATIC: WithActivations(
        weights=_WEIGHTS, activations=ActivationScheme(scope="tensor", range="static", zero="float")
    ),
    "dynamic per tensor": WithActivations(weights=_WEIGHTS, activations=ActivationScheme(scope="tensor")),
    "dynamic per token": WithActivations(weights=_WEIGHTS, activations=ActivationScheme(scope="token")),
}
"""Ways to eight bits; the first, which leaves the activations as they are, tells what of the rest is theirs."""

W8A8_CAVEAT = (
    "Matrices of the blocks in int8 with one symmetric scale each, what enters them in int8: static ranges from "
    "training windows (smallest to largest number), dynamic ones symmetric, of a window or a token. What a variant "
    "adds to attention (gates, k' and v', shift scalars) is not rounded. Quantizable Transformers also rounds "
    "embeddings, norms, scores, attention weights and residual sums, and clips its ranges."
)


Windows = Sequence[Sequence[int]]


def w8a8_losses(lm: LM, windows: Windows, calibration: Windows) -> dict[str, list[float]]:
    """The loss of each window, nats a token, by the ways of `WAYS`; the model is as it was afterwards.

    Args:
        calibration: windows from which static ranges are taken.
    """
    found = {}
    for name, method in WAYS.items():
        with quantized(lm, method, windows=calibration):
            found[name] = window_losses(lm, windows)
    return found


def stream_losses(lm: LM, windows: Windows, activations: ActivationScheme, *, first: int = 0) -> list[float]:
    """The loss of each window, nats a token, with matrices in eight bits, and what enters them and the residual
    stream rounded as `activations` says; the model is as it was afterwards.

    Args:
        first: so many first positions stay as they are, and set no range: what is left of the loss is not theirs.
    """
    with quantized(lm, _WEIGHTS), rounded_stream(lm, activations, first=first):
        return window_losses(lm, windows)


@torch.no_grad()
def window_losses(lm: LM, windows: Windows) -> list[float]:
    """The loss of each window, nats a token. One window a call: what is in it decides a dynamic range."""
    found = []
    for ids in windows:
        ids_1T = torch.tensor([list(ids)], device=lm.device)
        logits_TV = lm.model(input_ids=ids_1T, use_cache=False).logits[0, :-1].float()
        found.append(float(F.cross_entropy(logits_TV, ids_1T[0, 1:])))
    return found

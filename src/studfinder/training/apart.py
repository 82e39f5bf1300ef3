"""Whether a model keeps packed documents from seeing each other."""

from __future__ import annotations

from typing import Any

import torch

_DOCUMENT = 4
_SEEN = 1e-4
"""A change of the logits above this share of their spread is one that was seen; below it is rounding."""


def keeps_apart(model: Any) -> bool:
    """Whether positions that start anew hide everything before from attention.

    Tried out rather than looked up: most architectures of transformers make the mask of packed documents from
    `position_ids`, but some (OPT, Falcon) give them to their positions only, without a word, and convolutions and
    recurrent layers beside attention pass every mask over. Two documents of four tokens: changing the first must not
    change what comes of the second.

    Args:
        model: a causal LM in fp32, with 12 token ids and 8 positions or more.
    """
    ids_T = torch.arange(2 * _DOCUMENT)
    changed_T = torch.where(ids_T < _DOCUMENT, ids_T + 2 * _DOCUMENT, ids_T)
    positions_T = ids_T % _DOCUMENT
    training = model.training
    model.eval()  # dropout would change it too
    try:
        with torch.no_grad():
            both_BT = torch.stack([ids_T, changed_T]).to(model.device)
            positions_BT = positions_T.expand(2, -1).to(model.device)
            logits_BTV = model(input_ids=both_BT, position_ids=positions_BT, use_cache=False).logits.float()
    finally:
        model.train(training)
    one_TV, other_TV = logits_BTV[:, _DOCUMENT:]
    return bool((one_TV - other_TV).abs().max() < _SEEN * one_TV.std())

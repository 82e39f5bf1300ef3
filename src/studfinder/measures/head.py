"""From the decoder's last hidden state to logits, at chosen positions only."""

from __future__ import annotations

from collections.abc import Callable

import torch

from studfinder.models import LM

Head = Callable[[torch.Tensor], torch.Tensor]


def head_of(lm: LM) -> Head | None:
    """What turns hidden states (N,C) into logits (N,V) as the model does itself.

    It is the output matrix with what the config says of soft capping and scaling, tried on a few tokens against the
    model's own logits. None if the two differ: the model does something else there, and its whole forward must run.
    """
    matrix = lm.model.get_output_embeddings()
    if matrix is None:
        return None
    config = lm.model.config.get_text_config(decoder=True)
    cap = getattr(config, "final_logit_softcapping", None)
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)

    def head(hidden_NC: torch.Tensor) -> torch.Tensor:
        logits_NV = matrix(hidden_NC.to(matrix.weight.device))
        if scale != 1.0:
            logits_NV = logits_NV * scale
        if cap is not None:
            logits_NV = torch.tanh(logits_NV / cap) * cap
        return logits_NV

    ids = torch.arange(4, device=lm.device)[None] % lm.anatomy.vocabulary
    # A mask, so that ids which happen to be padding are read like any other.
    options = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    with torch.no_grad():
        own = lm.model(**options).logits[0].float()
        hidden = lm.model.get_submodule(lm.anatomy.decoder)(**options).last_hidden_state[0]
        if hidden.shape[-1] != matrix.weight.shape[-1]:
            return None
        ours = head(hidden).float()
    tolerance = 4 * torch.finfo(lm.dtype).eps * float(own.nan_to_num().abs().max())
    same = ours.shape == own.shape and torch.allclose(ours, own.to(ours.device), 0, tolerance, equal_nan=True)
    return head if same else None

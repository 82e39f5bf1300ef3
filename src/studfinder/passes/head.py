"""From the decoder's last hidden states to logits, at chosen positions only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from studfinder.models import LM
from studfinder.patches import Journal

Head = Callable[[torch.Tensor], torch.Tensor]


class _Enough(Exception):
    """The head has been reached."""


def head_of(lm: LM) -> Head | None:
    """What turns what the output matrix is given (N,C) into logits (N,V) as the model does itself.

    It is that matrix with what the config says of soft capping and scaling, tried on a few tokens against the model's
    own logits. None if the two differ: the model does something else there, and its whole forward must run.
    """
    matrix = lm.model.get_output_embeddings()
    if matrix is None:
        return None
    config = lm.model.config.get_text_config(decoder=True)
    cap = getattr(config, "final_logit_softcapping", None)
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)

    def head(hidden_NC: torch.Tensor) -> torch.Tensor:
        home = matrix.weight.device  # what is offloaded takes its input along by itself
        logits_NV = matrix(hidden_NC if home.type == "meta" else hidden_NC.to(home))
        if scale != 1.0:
            logits_NV = logits_NV * scale
        if cap is not None:
            logits_NV = torch.tanh(logits_NV / cap) * cap
        return logits_NV

    ids = torch.arange(4, device=lm.device)[None] % lm.anatomy.vocabulary
    # A mask, so that ids which happen to be padding are read like any other.
    options = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    given: list[torch.Tensor] = []
    with torch.no_grad():
        with Journal(lm.model) as journal:
            journal.hook(matrix, lambda _module, args: given.append(args[0]), before=True)
            own = lm.model(**options).logits[0].float()
        if len(given) != 1 or given[0].dim() != 3:
            return None
        ours = head(given[0][0]).float()
    tolerance = 4 * torch.finfo(lm.dtype).eps * float(own.nan_to_num().abs().max())
    same = ours.shape == own.shape and torch.allclose(ours, own.to(ours.device), 0, tolerance, equal_nan=True)
    return head if same else None


def before_head(lm: LM, run: Callable[[], Any]) -> torch.Tensor:
    """What the output matrix is given (B,T,C) when the model runs; it is not multiplied with."""
    given: list[torch.Tensor] = []

    def stop(hidden_BTC: torch.Tensor) -> None:
        given.append(hidden_BTC)
        raise _Enough

    with Journal(lm.model) as journal:
        matrix: nn.Module = lm.model.get_output_embeddings()
        journal.set(matrix, "forward", stop)
        try:
            run()
        except _Enough:
            return given[0]
    raise AssertionError("a head that was understood is not reached")

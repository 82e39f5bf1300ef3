"""From the decoder's last hidden states to logits, at chosen positions only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from studfinder.models import LM
from studfinder.passes.forks import is_hooked
from studfinder.patches import Journal

WORDS_AT_ONCE = 4096
"""Words of the vocabulary whose logits are made at a time: a large tensor costs the system more than to fill it."""


@dataclass(frozen=True)
class Head:
    """The output matrix, with what the config says of scaling and soft capping, in the dtype of the model's own logits:
    some cap in fp32."""

    matrix: nn.Module
    scale: float
    cap: float | None
    dtype: torch.dtype

    def __call__(self, hidden_NC: torch.Tensor) -> torch.Tensor:
        """Logits (N,V)."""
        home: Any = self.matrix.weight.device  # what is offloaded takes its input along by itself
        return self._finished(self.matrix(hidden_NC if home.type == "meta" else hidden_NC.to(home)))

    def pieces(self, hidden_NC: torch.Tensor) -> Iterator[torch.Tensor]:
        """Logits of some words (N,W) after those of others; all at once where the matrix is more than numbers."""
        matrix: Any = self.matrix
        plain = type(matrix) is nn.Linear and type(matrix.weight) is nn.Parameter and "forward" not in vars(matrix)
        if not plain or is_hooked(matrix):
            yield self(hidden_NC)
            return
        hidden_NC = hidden_NC.to(matrix.weight.device)
        for start in range(0, len(matrix.weight), WORDS_AT_ONCE):
            words = slice(start, start + WORDS_AT_ONCE)
            bias = None if matrix.bias is None else matrix.bias[words]
            yield self._finished(F.linear(hidden_NC, matrix.weight[words], bias))

    def _finished(self, logits_NW: torch.Tensor) -> torch.Tensor:
        logits_NW = logits_NW.to(self.dtype)
        if self.scale != 1.0:
            logits_NW = logits_NW * self.scale
        return logits_NW if self.cap is None else torch.tanh(logits_NW / self.cap) * self.cap


class _Enough(Exception):
    """The head has been reached."""


def head_of(lm: LM) -> Head | None:
    """What turns what the output matrix is given (N,C) into logits (N,V) as the model does itself, tried on a few
    tokens against its own. None if the two differ: the model does something else there, and its whole forward must run.
    """
    matrix = lm.model.get_output_embeddings()
    if matrix is None:
        return None
    config = lm.model.config.get_text_config(decoder=True)
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    ids = torch.arange(4, device=lm.device)[None] % lm.anatomy.vocabulary
    # A mask, so that ids which happen to be padding are read like any other.
    options = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    given: list[torch.Tensor] = []
    with torch.no_grad():
        with Journal(lm.model) as journal:
            journal.hook(matrix, lambda _module, args: given.append(args[0]), before=True)
            own = lm.model(**options).logits[0]
        if len(given) != 1 or given[0].dim() != 3:
            return None
        cap = getattr(config, "final_logit_softcapping", None)
        head = Head(matrix, scale, cap, own.dtype)
        ours, own = head(given[0][0]).float(), own.float()
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

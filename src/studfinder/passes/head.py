"""From the decoder's last hidden states to logits, at chosen positions only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
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
        plain = type(matrix) is nn.Linear and type(matrix.weight) is nn.Parameter
        plain = plain and getattr(matrix.forward, "is_linear", "forward" not in vars(matrix))
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


_STOPPING: ContextVar[bool] = ContextVar("stop in front of the output matrix", default=False)


class _Enough(Exception):
    """The head has been reached; what it is given."""


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


@contextmanager
def headless(lm: LM) -> Iterator[Callable[[Callable[[], Any]], torch.Tensor]]:
    """While the context lasts, gives what the output matrix is given (B,T,C) when a function runs the model, which goes
    no further. Threads may do so side by side; the matrix itself is there as ever."""
    matrix: nn.Module = lm.model.get_output_embeddings()
    own = matrix.forward

    def forward(hidden: torch.Tensor) -> Any:
        if _STOPPING.get():
            raise _Enough(hidden)
        return own(hidden)

    def before(run: Callable[[], Any]) -> torch.Tensor:
        outer = _STOPPING.set(True)
        try:
            run()
        except _Enough as reached:
            given: torch.Tensor = reached.args[0]
            return given
        finally:
            _STOPPING.reset(outer)
        raise AssertionError("a head that was understood is not reached")

    forward.is_linear = "forward" not in vars(matrix)  # type: ignore[attr-defined]
    with Journal(lm.model) as journal:
        journal.set(matrix, "forward", forward)
        yield before


def before_head(lm: LM, run: Callable[[], Any]) -> torch.Tensor:
    """What the output matrix is given (B,T,C) when the model runs; it is not multiplied with."""
    with headless(lm) as before:
        return before(run)

"""From the decoder's last hidden states to logits, at chosen positions only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from studfinder.models import LM
from studfinder.patches import Journal

_PIECE = 1 << 21
"""Logits of a piece of the vocabulary on a CPU: 8 MB in fp32, which stay in a cache while they are read."""

_STOPPING: ContextVar[bool] = ContextVar("stop in front of the output matrix", default=False)


class _Enough(Exception):
    """The head has been reached; what it is given."""


@dataclass(frozen=True)
class Head:
    """What turns what the output matrix is given (N,C) into logits (N,V)."""

    matrix: Any
    scale: float
    cap: float | None
    plain: bool

    def __call__(self, hidden_NC: torch.Tensor) -> torch.Tensor:
        home = self.matrix.weight.device  # what is offloaded takes its input along by itself
        return self._finished(self.matrix(hidden_NC if home.type == "meta" else hidden_NC.to(home)))

    def pieces(self, hidden_NC: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Logits of some tokens after the other: the first of them, and (N,.) that nobody else holds. They are the same
        up to rounding."""
        matrix, home = self.matrix, self.matrix.weight.device
        hooked = matrix._forward_hooks or matrix._forward_pre_hooks
        if not self.plain or hooked or home.type != "cpu":
            yield 0, self(hidden_NC)
            return
        step = max(256, _PIECE // max(1, len(hidden_NC)))
        for begin in range(0, len(matrix.weight), step):
            bias = None if matrix.bias is None else matrix.bias[begin : begin + step]
            part = nn.functional.linear(hidden_NC.to(home), matrix.weight[begin : begin + step], bias)
            yield begin, self._finished(part)

    def _finished(self, logits: torch.Tensor) -> torch.Tensor:
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


def head_of(lm: LM) -> Head | None:
    """What turns what the output matrix is given (N,C) into logits (N,V) as the model does itself.

    It is that matrix with what the config says of soft capping and scaling, tried on a few tokens against the model's
    own logits. None if the two differ: the model does something else there, and its whole forward must run.
    """
    matrix = lm.model.get_output_embeddings()
    if matrix is None:
        return None
    config = lm.model.config.get_text_config(decoder=True)
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    plain = type(matrix) is nn.Linear and "forward" not in vars(matrix)
    head = Head(matrix, scale, getattr(config, "final_logit_softcapping", None), plain)
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

    with Journal(lm.model) as journal:
        journal.set(matrix, "forward", forward)
        yield before


def before_head(lm: LM, run: Callable[[], Any]) -> torch.Tensor:
    """What the output matrix is given (B,T,C) when the model runs; it is not multiplied with."""
    with headless(lm) as before:
        return before(run)

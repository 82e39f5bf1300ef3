"""Ctrl-C ends a run between two steps, with a checkpoint; a loss that is not finite ends it too."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback


class StopAtStep(TrainerCallback):
    """Why and when to stop.

    Attributes:
        asked: "interrupted" after Ctrl-C, "diverged" after a loss that is inf or NaN; None otherwise.
    """

    def __init__(self, *, save: bool) -> None:
        self.save = save
        self.asked: str | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take Ctrl-C as a wish to stop after this step; a second one goes to the handler that was there before. Ours
        stays in its place meanwhile: edits that are measured during training stand in front of it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def on_signal(number: int, frame: Any) -> None:
            if self.asked == "interrupted":
                second = signal.default_int_handler if before is signal.SIG_DFL else before
                if callable(second):
                    second(number, frame)
            self.asked = "interrupted"

        signal.signal(signal.SIGINT, on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        # Every process must stop at the same step: Ctrl-C reaches all of them, but not at the same moment.
        if _anywhere(self.asked == "interrupted", args.device):
            self.asked = "interrupted"
            control.should_training_stop = True
            control.should_save = self.save
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> Any:
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(loss):
            self.asked = "diverged"
            control.should_training_stop = True
        return control


def _anywhere(wish: bool, device: torch.device) -> bool:
    """Whether any process wishes it."""
    if not torch.distributed.is_initialized():
        return wish
    wishes = torch.tensor(int(wish), device=device)
    torch.distributed.all_reduce(wishes, op=torch.distributed.ReduceOp.MAX)
    return bool(wishes)

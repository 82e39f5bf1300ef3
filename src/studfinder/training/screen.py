"""One line on the terminal while a model trains."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any, TextIO

from transformers import TrainerCallback

from studfinder.training.outliers import PREFIX

_EVERY = 0.3
"""Seconds between repaints."""
_SHOWN = (
    ("loss", "loss {:.3f}"),
    ("eval_loss", "test {:.3f}"),
    ("eval_accuracy", "accuracy {:.3f}"),
    (PREFIX + "inf_norm", "inf norm {:.3g}"),
    (PREFIX + "kurtosis", "kurtosis {:.3g}"),
    (PREFIX + "massive_activations", "massive {:.0f}"),
    (PREFIX + "sink_share", "sinks {:.0%}"),
)


class LiveLine(TrainerCallback):
    """Rewrites one line: step, loss, accuracy, outliers, time left. Where `stream` is no terminal it prints a line at
    each evaluation instead."""

    def __init__(self, stream: TextIO | None = None, width: int = 0) -> None:
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.width = width
        self.seen: dict[str, float] = {}
        self.started, self.begun, self.painted = 0.0, 0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.started, self.begun = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        self.seen.update({name: value for name, value in (logs or {}).items() if isinstance(value, int | float)})

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.live and time.monotonic() - self.painted > _EVERY and state.is_world_process_zero:
            self._paint(state)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        if self.live:
            self._paint(state)
        else:
            print(self._line(state), file=self.stream, flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.live and state.is_world_process_zero:
            self._paint(state)
            print(file=self.stream, flush=True)

    def _paint(self, state: Any) -> None:
        self.painted = time.monotonic()
        width = self.width or shutil.get_terminal_size().columns
        print("\r" + self._line(state)[: width - 1].ljust(width - 1), end="", file=self.stream, flush=True)

    def _line(self, state: Any) -> str:
        done = state.global_step - self.begun
        words = [f"step {state.global_step}/{state.max_steps}"]
        words += [form.format(self.seen[name]) for name, form in _SHOWN if name in self.seen]
        if done:
            each = (time.monotonic() - self.started) / done
            words += [f"{each:.2g} s/step", f"{_clock(each * (state.max_steps - state.global_step))} left"]
        return "  ".join(words)


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"

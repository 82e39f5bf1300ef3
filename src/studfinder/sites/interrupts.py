"""Signals held back while a model is changed: the one place that knows of them.

Python runs a signal's handler between any two steps of the main thread. What the handler raises (KeyboardInterrupt, for
Ctrl-C) can come where no `finally` sees it, e.g. after the block of a `with` and before the first line of its
`__exit__`. So while anything is changed, a handler of ours stands in front of every handler written in Python. It waits
for steps that must be done whole (`with held:`), and if the handler behind it raises, every change that the main
thread made is undone before the exception goes on. A handler that raises nothing disturbs nothing.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

_LOCK = threading.RLock()
_SIGNALS = tuple(signal.valid_signals())
_PREVIOUS: dict[int, Callable[[int, FrameType | None], Any]] = {}
_BEFORE_RAISING: list[Callable[[BaseException], None]] = []


class _Held(threading.local):
    """`with held:` what is inside is done whole: no signal handler runs in it, and no other thread is in one."""

    depth = 0

    def __init__(self) -> None:
        self.waiting: list[tuple[int, FrameType | None]] = []

    def __enter__(self) -> None:
        self.depth += 1
        _LOCK.acquire()

    def __exit__(self, *_: object) -> None:
        _LOCK.release()
        self.depth -= 1
        if not self.depth:
            _deliver()


held = _Held()


def guard() -> None:
    """Stand in front of every handler written in Python; only the main thread can, and only it is interrupted."""
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler) and handler is not _on_signal:
                _PREVIOUS[number] = handler
                signal.signal(number, _on_signal)


def unguard() -> None:
    """Give every handler its place back, but for those that somebody has set since: theirs may call ours."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in _PREVIOUS.items():
            if signal.getsignal(number) is _on_signal:
                signal.signal(number, handler)  # and is remembered: a signal may still be waiting for it


def before_raising(undo: Callable[[BaseException], None]) -> Callable[[BaseException], None]:
    """Call `undo` with what a handler raised, before it goes on."""
    _BEFORE_RAISING.append(undo)
    return undo


def _on_signal(number: int, frame: FrameType | None) -> None:
    if number not in (waiting for waiting, _ in held.waiting):  # as the system does: several are one
        held.waiting.append((number, frame))
    if not held.depth:
        _deliver()


def _deliver() -> None:
    if not held.waiting:
        return
    number, frame = held.waiting.pop(0)
    try:
        try:
            _PREVIOUS[number](number, frame)
        finally:
            _deliver()
    except BaseException as error:
        for undo in _BEFORE_RAISING:
            undo(error)
        raise

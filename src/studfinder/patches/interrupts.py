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
from typing import Any, Protocol

_LOCK = threading.RLock()
_NAMES = ("INT", "TERM", "ALRM", "HUP", "QUIT", "USR1", "USR2", "VTALRM", "PROF", "CHLD", "WINCH", "BREAK")
_SIGNALS = tuple(getattr(signal, f"SIG{name}") for name in _NAMES if hasattr(signal, f"SIG{name}"))


class Open(Protocol):
    """Something that is to be undone before an exception of a signal goes on."""

    def end(self, error: BaseException) -> None:
        """Undo it; `error` is what goes on."""


class _Held(threading.local):
    """`with held:` what is inside is done whole: no signal handler runs in it, and no other thread is in one.

    Attributes:
        open: what this thread has to undo, in the order in which it was done; handlers stay guarded until it is empty.
    """

    depth = 0
    entering = False

    def __init__(self) -> None:
        self.open: list[Open] = []
        self.waiting: list[tuple[_Front, int, FrameType | None]] = []

    def __enter__(self) -> None:
        try:
            if not self.depth:
                self.entering = True
                _guard()
            self.depth += 1  # from here on nothing is raised until the end
        except BaseException:
            self.entering = False
            if not self.open:
                _unguard()
            raise
        self.entering = False
        _LOCK.acquire()

    def __exit__(self, *_: object) -> None:
        _LOCK.release()
        self.depth -= 1
        if not self.depth:
            _settle()


held = _Held()


class _Front:
    """Stands in front of a handler. What comes in a held step waits, each signal once, as the system does it."""

    def __init__(self, previous: Callable[[int, FrameType | None], Any]) -> None:
        self.previous = previous

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if number not in (waiting for _, waiting, _ in held.waiting):
            held.waiting.append((self, number, frame))
        if not held.depth:
            _settle()


def _settle() -> None:
    """Let the signals through that had to wait; undo everything if one raises; leave handlers as they were if nothing
    is open."""
    try:
        if held.waiting:
            front, number, frame = held.waiting.pop(0)
            try:
                front.previous(number, frame)
            finally:
                _settle()
    except BaseException as error:
        for each in reversed(list(held.open)):
            each.end(error)
        raise
    finally:
        if not (held.open or held.depth or held.entering):
            _unguard()


def _guard() -> None:
    if threading.current_thread() is threading.main_thread():  # no other can, and no other is interrupted
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler) and not isinstance(handler, _Front):
                signal.signal(number, _Front(handler))


def _unguard() -> None:
    if threading.current_thread() is threading.main_thread():
        try:
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if isinstance(handler, _Front):
                    signal.signal(number, handler.previous)
        except BaseException:  # of a handler that has its place back already
            _unguard()
            raise

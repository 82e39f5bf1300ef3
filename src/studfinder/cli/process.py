"""The process around the command line: its streams and Ctrl-C, made safe before anything large is imported."""

from __future__ import annotations

import codecs
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED = "studfinder: interrupted; nothing that existed was lost"


def open_streams() -> None:
    """Nothing that is printed fails for its letters, or because a stream was closed.

    Letters that a terminal's encoding lacks are printed as JSON writes them, \\u4e2d, so that `--json` stays JSON.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # closed by whoever started us: or the next file opened takes its number
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115
    codecs.register_error("studfinder", _as_json)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="studfinder")  # type: ignore[union-attr]


def _as_json(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    pairs = (int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2))
    return "".join(f"\\u{unit:04x}" for unit in pairs), error.end


@contextmanager
def ends_at_once() -> Iterator[None]:
    """Ctrl-C within ends the process at once: while modules are being imported, an exception raised at any moment may
    be swallowed or turned into another one, and there is nothing to lose."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, as in a shell's background job
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(_signal: int, _frame: Any) -> None:
    os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(130)

"""Progress on stderr: a bar, or lines where that is no terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from studfinder.runs.progress import Bar, Lines
from studfinder.visible import duration, say

_FORM = "{desc} {percentage:3.0f}% {bar:20} {postfix}"
_BEAT, _SOON = 1.0, 60.0
"""Seconds between two signs of life, and from which on it is said how long all took."""


@contextmanager
def progress_bar(quiet: bool = False) -> Iterator[Bar | Lines]:
    """A function that is told (what is being done, how many are done, of how many). The bar appears when it is, and
    shows every second that the work goes on; behind the work a line says how long it took."""
    from tqdm import tqdm

    quiet = quiet or QUIET.is_set()
    if quiet or sys.stderr.isatty():
        progress: Bar | Lines = Bar(lambda: tqdm(file=sys.stderr, leave=False, disable=quiet, bar_format=_FORM))
    else:
        progress = Lines(lambda line: say(line, file=sys.stderr))
    began, ended = time.monotonic(), threading.Event()

    def beat() -> None:
        while not ended.wait(_BEAT):
            progress.beat()

    heart = threading.Thread(target=beat, daemon=True)
    heart.start()
    try:
        yield progress
    finally:
        ended.set()
        heart.join()
        progress.close()
    if not quiet and time.monotonic() - began >= _SOON:
        say(f"took {duration(time.monotonic() - began)}", file=sys.stderr)


QUIET = threading.Event()
"""Set by --quiet."""

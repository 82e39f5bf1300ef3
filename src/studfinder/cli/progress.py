"""Progress on stderr: a bar, or lines where that is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from studfinder.runs.progress import Bar, Lines
from studfinder.visible import say


@contextmanager
def progress_bar(quiet: bool = False) -> Iterator[Bar | Lines]:
    """A function that is told (what is being done, how many are done, of how many). The bar appears when it is."""
    from tqdm import tqdm

    if quiet or sys.stderr.isatty():
        progress: Bar | Lines = Bar(lambda: tqdm(file=sys.stderr, leave=False, disable=quiet))
    else:
        progress = Lines(lambda line: say(line, file=sys.stderr))
    try:
        yield progress
    finally:
        progress.close()

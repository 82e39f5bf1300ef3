"""Progress on stderr, off when that is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from studfinder.runs import Progress
from studfinder.runs.progress import Bar


@contextmanager
def progress_bar(quiet: bool = False) -> Iterator[Progress]:
    """A function that is told (what is being done, how many are done, of how many). The bar appears when it is."""
    from tqdm import tqdm

    bar = Bar(lambda: tqdm(file=sys.stderr, leave=False, disable=quiet or not sys.stderr.isatty()))
    try:
        yield bar
    finally:
        bar.close()

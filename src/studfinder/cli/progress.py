"""Progress on stderr, off when that is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from studfinder.visible import visible


@contextmanager
def progress_bar(quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A function that is told (what is being done, how many are done, of how many). The bar appears when it is."""
    from tqdm import tqdm

    bar: Any = None
    doing = ""

    def progress(what: str, done: int, total: int) -> None:
        nonlocal bar, doing
        if quiet or not sys.stderr.isatty():
            return
        bar = tqdm(file=sys.stderr, leave=False) if bar is None else bar
        # X(file=sys.stderr, leave=False)
        if what != doing:
            doing = what
            bar.reset(total)
            bar.set_description(visible(what))
        bar.update(done - bar.n)

    try:
        yield progress
    finally:
        if bar is not None:
            bar.close()

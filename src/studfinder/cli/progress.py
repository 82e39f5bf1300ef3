"""Progress on stderr, off when that is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from studfinder.visible import visible


@contextmanager
def progress_bar(quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A function that is told (what is being done, how many are done, of how many)."""
    from tqdm import tqdm

    if quiet or not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    doing = ""
    with tqdm(file=sys.stderr, leave=False) as bar:

        def progress(what: str, done: int, total: int) -> None:
            nonlocal doing
            if what != doing:
                doing = what
                bar.reset(total)
                bar.set_description(visible(what))
            bar.update(done - bar.n)

        yield progress

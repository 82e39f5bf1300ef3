"""Progress as a bar, on a terminal or in a notebook, or as lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from studfinder.visible import visible


class Bar:
    """A `Progress` that draws itself from when it is first told something until it is closed.

    Args:
        make: gives an empty bar of tqdm's.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make, self._bar, self._doing = make, None, ""

    def __call__(self, what: str, done: int, total: int) -> None:
        bar = self._bar = self._bar if self._bar is not None else self._make()
        if what != self._doing:
            self._doing = what
            bar.reset(total)
            bar.set_description(visible(what))
        bar.total = total  # an estimate may get better
        bar.update(done - bar.n)

    def close(self) -> None:
        """Take it away."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._doing = None, ""


class Lines:
    """A `Progress` that says now and then how far it is and how long it takes yet; nothing where that is soon over.

    Args:
        say: told a line.
        every: seconds between two lines, and before the first.
        clock: seconds, from any beginning.
    """

    def __init__(
        self, say: Callable[[str], Any], every: float = 15.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say, self._every, self._clock = say, every, clock
        self._doing, self._began, self._said = "", 0.0, 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = self._clock()
        if what != self._doing:
            self._doing, self._began, self._said = what, now, now
        if now - self._said >= self._every and 0 < done < total:
            self._said = now
            left = (now - self._began) * (total - done) / done
            self._say(f"{what}: {done / total:.0%}, about {left:,.0f} s left")

    def close(self) -> None:
        """There is nothing to take away."""


def _widget() -> Any:
    from tqdm.auto import tqdm

    return tqdm(leave=False)


_NOTEBOOK = Bar(_widget)


def in_notebook(what: str, done: int, total: int) -> None:
    """Progress that nobody asked for: a bar in a notebook until all is done, and nothing elsewhere."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if hasattr(shell, "kernel"):
        _NOTEBOOK(what, done, total)
        if done >= total:
            _NOTEBOOK.close()

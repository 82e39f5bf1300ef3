"""Progress as a bar, on a terminal or in a notebook."""

from __future__ import annotations

import sys
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
        bar.update(done - bar.n)

    def close(self) -> None:
        """Take it away."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._doing = None, ""


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

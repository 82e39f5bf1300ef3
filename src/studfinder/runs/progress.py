"""Progress as a bar, on a terminal or in a notebook, or as lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from studfinder.visible import duration, visible


class Told:
    """Where long work is: which step of those that will come, how far it is, and how long it takes yet.

    Args:
        clock: seconds, from any beginning.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._expected: dict[str, float] = {}
        self._forget()

    def _forget(self) -> None:
        self._began: float | None = None
        self._step, self._doing, self._done, self._total = 0.0, "", 0, 0

    def expect(self, steps: Mapping[str, float]) -> None:
        """The steps that will come, in their order, and how long each takes beside the others."""
        self._expected = {name: cost for name, cost in steps.items() if cost > 0}

    def _take(self, what: str, done: int, total: int) -> float:
        """Note what was told; the time. Cells of one count that are told under several names go on."""
        now = self._clock()
        if self._began is None:
            self._began = now
        if what != self._doing and not (self._done <= done and total == self._total and what not in self._expected):
            self._step = now
        self._doing, self._done, self._total = what, done, total
        return now

    def _left(self, now: float) -> float | None:
        """Seconds until all that is known of is done; None before anything is."""
        share, since = self._done / self._total if self._total else 0.0, self._step
        if self._doing in self._expected and self._began is not None:
            names = list(self._expected)
            before = sum(self._expected[name] for name in names[: names.index(self._doing)])
            share = (before + share * self._expected[self._doing]) / sum(self._expected.values())
            since = self._began
        return (now - since) * (1 - share) / share if share > 0 else None

    def _words(self, now: float) -> str:
        """ "proving (step 3 of 4): 20%"."""
        names = list(self._expected)
        which = f" (step {names.index(self._doing) + 1} of {len(names)})" if self._doing in names else ""
        return f"{self._doing}{which}: {self._done / self._total if self._total else 0:.0%}"

    def _times(self, now: float) -> str:
        """ "2 minutes so far, about 64 seconds left"."""
        left = self._left(now)
        so_far = f"{duration(now - (self._began or 0.0))} so far"
        return so_far if left is None else f"{so_far}, about {duration(left)} left"


class Bar(Told):
    """A `Progress` that draws itself from when it is first told something until it is closed.

    Args:
        make: gives an empty bar of tqdm's.
    """

    def __init__(self, make: Callable[[], Any], clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._make, self._bar = make, None

    def __call__(self, what: str, done: int, total: int) -> None:
        bar = self._bar = self._bar if self._bar is not None else self._make()
        new = what != self._doing
        now = self._take(what, done, total)
        if new:
            bar.reset(total)
            bar.set_description(visible(self._words(now).partition(": ")[0]))
        bar.total = total  # an estimate may get better
        bar.set_postfix_str(self._times(now), refresh=False)
        bar.update(done - bar.n)

    def beat(self) -> None:
        """Show that it still goes on."""
        if self._bar is not None:
            self._bar.set_postfix_str(self._times(self._clock()))

    def close(self) -> None:
        """Take it away."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None
        self._forget()


class Lines(Told):
    """A `Progress` that says now and then how far it is and how long it takes yet; nothing where that is soon over.

    Args:
        say: told a line.
        every: seconds between two lines, and before the first.
    """

    def __init__(
        self, say: Callable[[str], Any], every: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(clock)
        self._say, self._every, self._said = say, every, 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._began is None:
            self._said = self._clock()
        self._take(what, done, total)
        self.beat()

    def beat(self) -> None:
        """Say where it is, if that was not said for a while."""
        now = self._clock()
        if self._doing and now - self._said >= self._every and self._done < self._total:
            self._said = now
            self._say(f"{self._words(now)}, {self._times(now)}")

    def close(self) -> None:
        """What comes next begins anew."""
        self._forget()


def expect(progress: Any, steps: Mapping[str, float]) -> None:
    """Tell a progress of ours which steps will come, and how long each takes beside the others."""
    if isinstance(progress, Told):
        progress.expect(steps)


def in_shares(progress: Callable[[str, int, int], Any], what: str) -> Callable[[float], None]:
    """A function that is told which share of a step was done since it was last told."""
    done = 0.0

    def advance(share: float) -> None:
        nonlocal done
        done = min(1.0, done + share)
        progress(what, round(done * 1000), 1000)

    return advance


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

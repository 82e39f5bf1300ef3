"""The executor that has workers: who does which share, what becomes of a lost worker's, and that all are alike."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Protocol

from studfinder.errors import NoWorkers, StudfinderError
from studfinder.patches import any_open
from studfinder.records.outside import whole_number
from studfinder.runs import Progress, Put, Share, Steps, here, key_of, made_on
from studfinder.studies.worker import Job, Order, Reply
from studfinder.visible import say

_WORKER = "worker "


class Crew(Protocol):
    """Workers somewhere, by number; each answers a request once, and first that it is ready.

    Attributes:
        on: as the user named them.
        threads: of each.
    """

    on: str
    threads: int

    def start(self, job: Job, /) -> list[int]:
        """Start them; their numbers."""

    def ask(self, worker: int, request: Order, /) -> None:
        """Send a request."""

    def answer(self) -> tuple[int, Reply]:
        """Wait for any worker's answer; ("lost", why) of one that is gone, once."""

    def close(self) -> None:
        """End them all, whatever they do."""


def crew_of(on: str, *, gpu: bool = False) -> Crew:
    """The crew that is named by "processes:4", "ray", "ray:4" (two, if not said) or "ray://HOST:PORT".

    Args:
        gpu: whether the model runs on GPUs.

    Raises:
        StudfinderError: there is no such kind.
        Unavailable: Ray is not installed.
    """
    from studfinder.studies.on_ray import RayCrew
    from studfinder.studies.processes import ProcessCrew

    kind, _, rest = on.partition(":")
    if kind == "ray" and rest.startswith("//") and len(rest) > 2:
        return RayCrew(1, on, gpu=gpu)
    count = whole_number(rest) if rest else 2
    if kind not in ("processes", "ray") or not count or count < 1:
        raise StudfinderError(f"--on {on[:40]}", expected="processes:4, ray, ray:4 or ray://HOST:PORT")
    return ProcessCrew(count) if kind == "processes" else RayCrew(count, gpu=gpu)


class Workers:
    """Carries out a run's shares on a crew; an executor (`runs.Executor`) and a context manager, which ends the crew.

    A share is done whole by one worker, and its steps are put as they come. One whose worker was lost is begun again by
    another, without the steps that were put. The workers are started when there is something to do.

    Args:
        steps: of the run: what is known of it, and where it is noted who did it.
        mixed: workers may differ in what they compute with.
        progress: told how many shares are done.
    """

    def __init__(self, crew: Crew, job: Job, steps: Steps, *, mixed: bool, progress: Progress) -> None:
        self._crew, self._job, self._steps, self._mixed, self._progress = crew, job, steps, mixed, progress
        self._living: set[int] = set()
        self._started = 0
        self._at: dict[int, str | None] = {}  # the share of each busy worker; None: nobody waits for it any more
        self._told: dict[int, int] = {}  # how many steps each knows
        self._before = 0  # how many were known when the shares were given out
        self._facts: dict[int, dict[str, str]] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._crew.close()

    def __call__(self, shares: Mapping[str, Share], put: Put) -> None:
        """See `runs.Executor`.

        Raises:
            StudfinderError: what stands in a share's way.
            NoWorkers: they differ, or none is left.
        """
        if any_open():  # workers have the model as it was loaded
            here(shares, put)
            return
        todo, done, self._before = deque(shares), 0, len(self._steps.values)
        if todo and not self._started:
            self._progress(f"starting {self._crew.on}", 0, len(shares))
            self._living = set(self._crew.start(self._job))
            self._started, self._at = len(self._living), dict.fromkeys(self._living)
        try:
            while done < len(shares):
                for worker in sorted(self._living - set(self._at))[: len(todo)]:
                    self._give(worker, todo.popleft())
                self._progress(f"shares of the work, on {self._crew.on}", done, len(shares))
                worker, (kind, said) = self._crew.answer()
                share = self._at.pop(worker, None)
                if kind == "lost":
                    todo.extendleft([share] if share else [])
                    self._lost(worker, share, said)
                elif kind == "ready":
                    self._welcome(worker, said)
                elif kind == "failed" and (share or worker not in self._facts):
                    raise said
                elif share is None:  # it was at something that ended with an error meanwhile
                    continue
                elif kind == "step":
                    self._at[worker] = share
                    self._crew.ask(worker, None)
                    facts = self._facts[worker]
                    self._steps.once(f"{_WORKER}{worker} {key_of(facts)}", partial(dict, facts))
                    put(*said)
                else:
                    done += 1
        except BaseException:
            self._at = dict.fromkeys(self._at)
            raise

    def _give(self, worker: int, share: str) -> None:
        values, told = self._steps.values, self._told.get(worker, 0)
        before = dict(islice(values.items(), told, max(told, self._before)))
        since = dict(islice(values.items(), max(told, self._before), None))
        self._told[worker], self._at[worker] = len(values), share
        self._crew.ask(worker, (share, before, since))

    def _lost(self, worker: int, share: str | None, why: str) -> None:
        self._living.discard(worker)
        if not self._living:
            which = "the only worker" if self._started == 1 else f"the last of {self._started} workers"
            raise NoWorkers(
                f"{which} of {self._crew.on} was lost ({why})",
                do="Each holds the model: where memory ended, take fewer; the same command goes on where this stopped",
            )
        again = ", and what it was at is done again by another" if share else ""
        say(f"worker {worker} was lost ({why}){again}; {len(self._living)} left", file=sys.stderr)

    def _welcome(self, worker: int, facts: dict[str, str]) -> None:
        """Take in a worker that is ready, if it computes with what all others do, this process among them."""
        self._facts[worker] = facts
        earlier = {name: one for name, one in self._steps.values.items() if name.startswith(_WORKER)}
        for other, theirs in {"this process": made_on(), **earlier}.items():
            free = ("host", "threads", *(["commit"] if other in earlier else []))  # as for any run that is gone on with
            differ = [name for name in facts | theirs if name not in free and facts.get(name) != theirs.get(name)]
            if differ and not self._mixed:
                name = differ[0]
                called = other if other == "this process" else f"a worker on {theirs.get('host')}"
                raise NoWorkers(
                    f"a worker on {facts['host']} computes with {name} {facts.get(name)}, {called} with "
                    f"{theirs.get(name)}, so their numbers may differ",
                    expected="workers that are alike",
                    do="Say --mixed to have them together all the same; it is recorded",
                )


def workers_of(steps: Steps) -> dict[str, str]:
    """Who did a run's steps, for its record: "worker 1" and what it computed with."""
    found: dict[str, list[str]] = {}
    for name, facts in steps.values.items():
        if name.startswith(_WORKER):
            said = ", ".join(f"{what} {value}" for what, value in facts.items())
            found.setdefault(name.rpartition(" ")[0], []).append(said)
    return {name: "; ".join(found[name]) for name in sorted(found, key=lambda name: int(name.split()[1]))}

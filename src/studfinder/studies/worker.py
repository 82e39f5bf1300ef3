"""A worker: another process, here or elsewhere, that carries out shares of a run with a model of its own.

A share cannot be sent: it is made of functions around a live model. So a worker is told how the run is made (its *job*)
and, with the name of a share, all steps that are known. It goes through the run itself, as one that was
interrupted there and goes on: what is known is not done again. Where the run gives out that share it stops, and carries
the share out. So whatever goes through `Steps.executor` can be done by workers, and nothing about it is said twice.
"""

from __future__ import annotations

import os
import platform
import traceback
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from studfinder.errors import NoWorkers, in_a_line, known
from studfinder.measures import batch_size
from studfinder.runs import Put, Share, Steps, here, made_on

Order = tuple[str, Mapping[str, Any], Mapping[str, Any]] | None
"""The name of a share to begin, and steps that were not told before: those that were known when the share was given
out, and those that came since. None: go on."""

Reply = tuple[str, Any]
"""("ready", what it computes with), ("step", (its name, its value)), ("done", None) or ("failed", an exception); and
from who looks after it ("lost", why)."""


class Job(Protocol):
    """How a run is made, as plain data.

    Attributes:
        folder: the folder it is made in: relative paths are meant from there.
        tokens: see `measures.batch_size`.
    """

    folder: Path
    tokens: int | None

    def follow(self, steps: Steps, share: str, /) -> None:
        """Go through the run as far as a share of this name is given out. The model stays at hand for the next call."""


class Worker:
    """What does a job's shares; one request, one answer.

    Args:
        threads: for each operation.
    """

    def __init__(self, job: Job, threads: int) -> None:
        torch.set_num_threads(threads)
        self._job, self._steps = job, Steps(None)
        self._steps.executor = self._given_out
        self._shares: Mapping[str, Share] = {}
        self._wanted = ""
        self._doing: Generator[tuple[str, Any], None, None] | None = None

    def ready(self) -> Reply:
        """The first answer, before any request."""
        if not self._job.folder.is_dir():
            return "failed", NoWorkers(
                f"a worker on {platform.node()} does not see the folder {self._job.folder}",
                expected="storage that all machines share, at the same path",
            )
        os.chdir(self._job.folder)
        return "ready", made_on()

    def answer(self, request: Order) -> Reply:
        """Begin a share, or go on with it, as far as its next step."""
        try:
            with batch_size(self._job.tokens):
                if request is not None:
                    self._begin(*request)
                assert self._doing is not None
                found = next(self._doing, None)
            return ("done", None) if found is None else ("step", found)
        except Exception as error:
            said = known(error) or RuntimeError(f"{type(error).__name__} in a worker: {in_a_line(error)}")
            said.add_note("".join(traceback.format_exception(error)))  # all that crosses is this text
            return "failed", said

    def _begin(self, share: str, before: Mapping[str, Any], since: Mapping[str, Any]) -> None:
        if self._doing is not None:
            self._doing.close()
        self._doing, self._wanted = None, share
        self._steps.values.update(before)
        if share not in self._shares:
            self._shares = {}  # the old ones hold a model, perhaps another
            try:
                self._job.follow(self._steps, share)
                raise RuntimeError(f"the run never came to {share}")
            except _GivenOut as reached:
                self._shares = reached.shares
        self._steps.values.update(since)  # not before: what is known is not given out
        self._doing = self._shares[share]()

    def _given_out(self, shares: Mapping[str, Share], put: Put) -> None:
        """The executor of the run that is followed."""
        if self._wanted in shares:
            raise _GivenOut(shares)
        here(shares, put)  # what the run itself passed over, and will pass over again


class _GivenOut(BaseException):
    """The run came to the share that is wanted; no handler of errors is to stop this."""

    def __init__(self, shares: Mapping[str, Share]) -> None:
        super().__init__("the share is given out")
        self.shares = shares

"""Workers as processes of this machine."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from studfinder.studies.worker import Job, Order, Reply, Worker

_PATIENCE = 5.0
"""Seconds that a process has to end before it is killed."""


class ProcessCrew:
    """So many processes, which share the cores; see `Crew`."""

    def __init__(self, count: int) -> None:
        self.on = f"processes:{count}"
        self.threads = max(1, torch.get_num_threads() // count)
        self._count = count
        self._processes: dict[int, BaseProcess] = {}
        self._ends: dict[Connection, int] = {}

    def start(self, job: Job) -> list[int]:
        """See `Crew.start`."""
        context = get_context("spawn")  # a fork of a process that has computed with threads may hang
        # Ctrl-C reaches every process of the terminal. Workers are ended by this one; they never see it.
        outer = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for number in range(1, self._count + 1):
                near, far = context.Pipe()
                process = context.Process(target=_serve, args=(far, job, self.threads), daemon=True)
                process.start()
                far.close()
                self._processes[number], self._ends[near] = process, number
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, outer)
        return list(self._processes)

    def ask(self, worker: int, request: Order) -> None:
        """See `Crew.ask`."""
        with suppress(OSError):  # it is gone, as `answer` will find
            next(end for end, number in self._ends.items() if number == worker).send(request)

    def answer(self) -> tuple[int, Reply]:
        """See `Crew.answer`."""
        end = wait(list(self._ends))[0]
        assert isinstance(end, Connection)
        try:
            return self._ends[end], end.recv()
        except (EOFError, OSError):
            worker = self._ends.pop(end)
            end.close()
            return worker, ("lost", self._ended(self._processes[worker]))

    @staticmethod
    def _ended(process: BaseProcess) -> str:
        process.join(_PATIENCE)
        code = process.exitcode or 0
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit code {code}"

    def close(self) -> None:
        """See `Crew.close`."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.join(_PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()
        for end in self._ends:
            end.close()
        self._processes, self._ends = {}, {}


def _serve(end: Connection, job: Job, threads: int) -> None:
    """What a process does until nobody asks any more."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)  # bars and warnings of several processes at once help nobody
    os.dup2(nowhere, 2)
    worker = Worker(job, threads)
    try:
        end.send(worker.ready())
        while True:
            end.send(worker.answer(end.recv()))
    except (EOFError, OSError):
        return

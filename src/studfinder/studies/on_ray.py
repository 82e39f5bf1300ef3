"""Workers as actors of Ray: a cluster of its own on this machine, or one that is there."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from typing import Any

import torch

from studfinder.errors import NoWorkers, Unavailable, in_a_line
from studfinder.studies.worker import Job, Order, Reply, Worker

_TOKEN = "RAY_AUTH_TOKEN"

_START = 300.0
"""Seconds in which some worker of a cluster has to be there."""


class RayCrew:
    """Actors; see `Crew`. On a cluster that is there, one on each machine, or one on each GPU.

    Args:
        count: of workers on this machine; ignored with an address.
        address: "ray://HOST:PORT" of a cluster to join; "" starts one here, which ends with the crew.
        gpu: whether the model runs on GPUs: one a worker.

    Raises:
        Unavailable: Ray is not installed.
    """

    def __init__(self, count: int, address: str = "", *, gpu: bool = False) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody asked for reports of use
        try:
            import ray
        except ImportError:
            raise Unavailable(
                "Ray is not installed", expected="the extra ray", do="pip install 'studfinder[ray]'"
            ) from None
        self._ray: Any = ray
        self.on = address or f"ray:{count}"
        self.threads = max(1, torch.get_num_threads() // count)
        self._count, self._address, self._gpu = count, address, gpu
        self._folder, self._heard, self._own_token = "", False, _TOKEN in os.environ
        self._actors: dict[int, Any] = {}
        self._asked: dict[Any, int] = {}

    def start(self, job: Job) -> list[int]:
        """See `Crew.start`."""
        more: dict[str, Any] = {"address": self._address}
        if not self._address:
            self._folder = tempfile.mkdtemp(prefix="studfinder-ray-")
            cores = self._count * self.threads
            os.environ.setdefault(_TOKEN, secrets.token_hex(32))  # or Ray writes one into the user's home
            more = {"address": "local", "num_cpus": cores, "include_dashboard": False, "_temp_dir": self._folder}
        try:
            self._ray.init(log_to_driver=False, logging_level="ERROR", **more)
        except Exception as error:  # of many types
            where = f"the Ray cluster at {self._address} cannot be joined" if self._address else "Ray does not start"
            do = "See that its client port is open, and that its token is here (RAY_AUTH_MODE, RAY_AUTH_TOKEN)"
            raise NoWorkers(f"{where} ({in_a_line(error)})", do=do if self._address else None) from error
        if self._address:
            self._measure()
        needs = {"num_cpus": self.threads, "num_gpus": int(self._gpu), "scheduling_strategy": "SPREAD"}
        actor = self._ray.remote(Worker).options(max_restarts=0, **needs)
        for number in range(1, self._count + 1):
            self._actors[number] = actor.remote(job, self.threads)
            self._asked[self._actors[number].ready.remote()] = number
        return list(self._actors)

    def _measure(self) -> None:
        """How many workers a cluster has room for, and the threads of each: as many for all."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        kind = "GPU" if self._gpu else "CPU"
        nodes = [node for node in nodes if node.get(kind, 0) >= 1 and node.get("CPU", 0) >= 1]
        if not nodes:
            raise NoWorkers(f"the Ray cluster at {self._address} has no machine with a {kind}")
        each = [int(node["GPU"]) if self._gpu else 1 for node in nodes]
        self._count = sum(each)
        self.threads = max(1, min(int(node["CPU"]) // many for node, many in zip(nodes, each, strict=True)))

    def ask(self, worker: int, request: Order) -> None:
        """See `Crew.ask`."""
        self._asked[self._actors[worker].answer.remote(request)] = worker

    def answer(self) -> tuple[int, Reply]:
        """See `Crew.answer`."""
        ready, _ = self._ray.wait(list(self._asked), num_returns=1, timeout=None if self._heard else _START)
        if not ready:
            raise NoWorkers(
                f"no worker of {self.on} has started within {_START:.0f} seconds",
                expected=f"{self.threads} free cores on some machine",
                do="ray status says what is free",
            )
        self._heard = True
        worker = self._asked.pop(ready[0])
        try:
            return worker, self._ray.get(ready[0])
        except self._ray.exceptions.RayActorError as error:
            del self._actors[worker]
            why = [line.strip() for line in str(error).splitlines() if line.strip()][-1].partition(". ")[0]
            if "creation task" in str(error):
                same = "the same Python, with the same packages, on all machines"
                return worker, ("failed", NoWorkers(f"a worker of {self.on} cannot start ({why})", expected=same))
            return worker, ("lost", why)

    def close(self) -> None:
        """See `Crew.close`."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._ray.shutdown()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            if not self._own_token:
                os.environ.pop(_TOKEN, None)
        self._actors, self._asked = {}, {}

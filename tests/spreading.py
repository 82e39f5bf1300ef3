"""An experiment whose work can be shared in every way there is, and a crew that needs no processes."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from studfinder.edits import Weights, scale, stream_of, zero
from studfinder.errors import NotApplicable
from studfinder.measures import Scores
from studfinder.models import LM
from studfinder.records import Table
from studfinder.records.config import option
from studfinder.studies import ModelVariant, Original, swept, with_edits
from studfinder.studies.experiment import Bench, Experiment, Outcome, StudyConfig
from studfinder.studies.rounding import ORIGINAL
from studfinder.studies.worker import Job, Order, Reply, Worker
from studfinder.texts import encode, proof_text


@dataclass(frozen=True, kw_only=True)
class SpreadingConfig(StudyConfig):
    variants: int = option(9, help="Changes of the model.")
    fault: str = option("", help="What goes wrong.")


EXPERIMENT = Experiment(
    name="tests/spreading",
    paper="-",
    shows="ours",
    summary="Is work that is shared the same work?",
    needs="a second",
    presets={"cpu": SpreadingConfig()},
    spread=True,
)


class Missing:
    """A measure that has no data here, after the first variant if so told; or that fails."""

    def __init__(self, fault: str) -> None:
        self.name, self.fault = "missing", fault

    def see(self, lm: LM) -> None: ...

    def scores(self, lm: LM) -> dict[str, Scores]:
        raise ValueError("a mistake of ours") if self.fault == "bug" else NotApplicable("no data")


def run(bench: Bench, lm: LM) -> Outcome:
    """Streams in one reading; 40 cells of ten variants; a sweep. What comes later depends on what came before."""
    writers = [ref.parameter for layer in lm.anatomy.layers for ref in layer.writers]
    wholes = [Weights(parameter=name, entries=((None, None),)) for name in writers]
    factors = [0.5 + 0.05 * place for place in range(bench.config.variants)]
    edits = [scale([wholes[place % len(wholes)]], factor) for place, factor in enumerate(factors)]
    streams = [
        ModelVariant(f"x {factor:g}", stream=lambda edit=edit: (stream_of(lm, edit), None))
        for factor, edit in zip(factors, edits, strict=True)
    ]
    read = bench.grid(lm, [ORIGINAL, *streams], [Original(6)])
    worst = max(range(len(edits)), key=lambda place: read.scores[read.labels[place + 1]]["KL"].value)
    bench.once("worst", lambda: worst)
    variants = [with_edits(lm, f"edit {place}", [*edit, *edits[worst]]) for place, edit in enumerate(edits)]
    measures: list[Any] = ["perplexity", Original(2), Original(1, name="first"), Original(2, name="late", skip=5)]
    measures += [Missing(bench.config.fault)] if bench.config.fault else []
    cells = bench.grid(lm, [ModelVariant("original"), *variants], measures, limits={"perplexity": 2})
    windows = encode(lm, proof_text()[:6])[0]
    nothing = [zero([wholes[-1]]), *edits]
    effects = swept(bench, lm, "one edit at a time", windows, nothing, bench.progress)
    kl = tuple((float(one), float(other)) for one, other in zip(effects.kl.sum(1), effects.nll.sum(1), strict=True))
    tables = [read.scores_table("streams"), cells.scores_table("cells")]
    return Outcome([*tables, Table(title="sweep", columns=("kl", "nll"), rows=kl)], cells.notes())


class CrewHere:
    """Workers in this process, each of which does one request at a time when it is waited for.

    Args:
        count: of workers.
        loses: (worker, its how manieth answer) that never come: it is lost.
        facts: what they compute with beyond the truth, by worker.
    """

    on, threads = "here", 1

    def __init__(self, count: int, loses: set[tuple[int, int]] = frozenset(), facts: Any = None) -> None:  # type: ignore[assignment]
        self.count, self.loses, self.facts = count, loses, facts or {}
        self.workers: dict[int, Worker] = {}
        self.asked: deque[tuple[int, Callable[[], Reply]]] = deque()
        self.answered: dict[int, int] = {}
        self.begun: list[tuple[int, str]] = []
        self.closed = False

    def start(self, job: Job) -> list[int]:
        for number in range(1, self.count + 1):
            self.workers[number] = Worker(pickle.loads(pickle.dumps(job)), 1)
            self.asked.append((number, self.workers[number].ready))
        return list(self.workers)

    def ask(self, worker: int, request: Order) -> None:
        if request is not None:
            self.begun.append((worker, request[0]))
        request = pickle.loads(pickle.dumps(request))
        self.asked.append((worker, lambda: self.workers[worker].answer(request)))

    def answer(self) -> tuple[int, Reply]:
        worker, call = self.asked.popleft()
        self.answered[worker] = self.answered.get(worker, 0) + 1
        if (worker, self.answered[worker]) in self.loses:
            self._end(worker)
            return worker, ("lost", "ended by SIGKILL")
        kind, said = pickle.loads(pickle.dumps(call()))
        return worker, (kind, {**said, **self.facts.get(worker, {})} if kind == "ready" else said)

    def _end(self, worker: int) -> None:
        """What a process takes with it when it ends: here it would be seen as a change of some model."""
        doing = self.workers.pop(worker)._doing
        if doing is not None:
            doing.close()

    def close(self) -> None:
        for worker in list(self.workers):
            self._end(worker)
        self.closed = True

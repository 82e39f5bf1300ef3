"""What an experiment is: one table or figure of a paper, on the user's own models.

Each is a file that reads like the paper's method section. It holds `EXPERIMENT`, its entry, and `run(bench, lm)`, which
measures one model and returns an Outcome (one that trains its own has `run(bench)`). Where it says something of all
models together it has `across(data)`, given the data by model; where it needs a figure that no chart can say,
`draw(name, data, width)`, from the data of one model alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from studfinder.errors import unknown
from studfinder.measures import MEASURES
from studfinder.models import LM, cached_content_hash, load, model_card
from studfinder.records import Chart, Claim, ClaimResult, ModelCard, Table, from_json, to_plain
from studfinder.records.config import Config, option
from studfinder.runs import Executor, Progress, Work
from studfinder.sites import check_causal
from studfinder.studies import Grid, GridScores, ModelVariant, Watch


@dataclass(frozen=True, kw_only=True)
class StudyConfig(Config):
    """What every experiment can be told: fields are keywords, `--set NAME=VALUE`, and part of the run's identity."""

    seed: int = option(0, help="Of everything that is drawn at random.", least=0)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment's entry.

    Attributes:
        name: e.g. "super-weight/ablation".
        paper: arXiv number.
        shows: which table or figure of the paper; "ours" if nobody has published it.
        summary: what it asks, in one line.
        needs: time and memory with the built-in model on two cores, as measured.
        presets: settings by preset, of one class; "cpu" always, "paper" where the paper's own sizes are known. A
            `limit` among them is what --limit sets.
        trains: whether it trains models of its own instead of taking the user's.
        spread: whether its work is a grid's, or a sweep's (`Bench.grid`, `swept`), so that workers can share it.
        claims: of the paper, that it judges.
    """

    name: str
    paper: str
    shows: str
    summary: str
    needs: str
    presets: Mapping[str, StudyConfig]
    trains: bool = False
    spread: bool = False
    claims: tuple[Claim, ...] = ()

    def settings(self, preset: str) -> StudyConfig:
        """A preset. Raises StudfinderError if there is none of this name."""
        if preset not in self.presets:
            raise unknown(f"{self.name} has no preset", preset, self.presets)
        return self.presets[preset]


@dataclass
class Outcome:
    """What was measured of one model (or, where none is given, of all that were trained).

    Attributes:
        tables, notes, charts: see `records.Result`; the model's name is put before titles and notes.
        data: everything that the experiment's own figure needs, and whatever else is worth keeping.
        remarks: notes on the experiment, said once and not of each model.
        claims: what the model says of the paper's claims; its name is put in.
    """

    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    claims: list[ClaimResult] = field(default_factory=list)

    def add(self, model: str, part: Outcome) -> None:
        """Take in what was measured of a model."""
        suffix = f"-{len(self.data) + 1}" if self.data else ""
        self.tables += [replace(table, title=f"{model}: {table.title}") for table in part.tables]
        self.notes += [f"{model}: {note}" for note in part.notes]
        self.charts += [replace(chart, name=chart.name + suffix, model=model) for chart in part.charts]
        self.data[model] = part.data
        self.claims += [replace(claim, model=model) for claim in part.claims]
        self.remarks += [remark for remark in part.remarks if remark not in self.remarks]


class Bench:
    """What an experiment works with: models, settings, and a memory of what is already done.

    Attributes:
        models: names or paths, as the user gave them.
        config: of the preset, with what the user changed.
        work: the run's folder and the steps that are done.
        cards: the models that were loaded so far.
        scope: what the names of steps begin with, of the model at hand; "" of none.
        loader: loads a model by name.
        scans: where a scan that the experiment needs is written, if ./runs has none.
    """

    def __init__(
        self,
        models: tuple[str, ...],
        config: Any,
        work: Work,
        progress: Progress | None = None,
        loader: Callable[[str], LM] = load,
        first: LM | None = None,
        scans: Path = Path("runs"),
    ) -> None:
        self.models, self.config = models, config
        self.cards: list[ModelCard] = []
        self.scans = scans
        self.work, self._progress, self.loader = work, progress, loader
        self._lm = first
        self._name = models[0] if first is not None else ""
        self.scope = ""

    @property
    def folder(self) -> Path:
        """Where the run is worked on, for what a long step keeps to go on from (say so with `work.keep()`)."""
        return self.work.path

    @contextmanager
    def model(self, name: str) -> Iterator[LM]:
        """Load a model; steps inside belong to it (to its weights: other weights under the same name begin anew)."""
        if self._name != name or self._lm is None:
            self._lm = None  # the old one is let go before the new one is loaded
            self._lm, self._name = self.loader(name), name
        check_causal(self._lm, "experiments")
        digest = cached_content_hash(self._lm)
        if digest not in [card.content_hash for card in self.cards]:
            self.cards.append(model_card(self._lm, digest, None))
        self.scope = digest[:16]
        try:
            yield self._lm
        finally:
            self.scope = ""

    def has(self, step: str) -> bool:
        """Whether a step is done."""
        return self._scoped(step) in self.work.steps.values

    def once(self, step: str, compute: Callable[[], Any]) -> Any:
        """Do a step, or take its result from an earlier, interrupted run. The value must be plain JSON (records go
        through `to_plain`); it comes back as JSON makes it: tuples as lists, keys as texts."""
        return self.work.steps.once(self._scoped(step), compute)

    @property
    def spread(self) -> bool:
        """See `Steps`."""
        return self.work.steps.spread

    @property
    def executor(self) -> Executor:
        """Carries out shares of the work where the run says."""
        return lambda shares, put: self.work.steps.executor({self._scoped(n): one for n, one in shares.items()}, put)

    def outcome(self, read: Callable[[], Outcome]) -> Outcome:
        """All that is said of a model as one step, where all of it comes from one reading."""
        return from_json(Outcome, json.dumps(self.once("outcome", lambda: to_plain(read()))), name="the outcome")

    def _scoped(self, step: str) -> str:
        return f"{self.scope}/{step}" if self.scope else step

    def grid(
        self,
        lm: LM,
        variants: Sequence[ModelVariant],
        measures: Sequence[str | Watch],
        *,
        limits: Mapping[str, int | None] | None = None,
        **more: Any,
    ) -> GridScores:
        """Every measure of every variant: at most `limit` items of each, and `windows` of a perplexity, as the settings
        say, if not `limits`; see `Grid`, which takes the rest."""
        items, seed = getattr(self.config, "limit", None), self.config.seed
        most = {**dict.fromkeys(MEASURES, items), "perplexity": getattr(self.config, "windows", items)}
        most.update(limits or {})
        more |= {"limits": most, "seed": seed, "progress": self.progress}
        return Grid(run=self, lm=lm, variants=variants, measures=measures, **more).scored()

    def each(self, measure: str, field: str) -> list[str]:
        """A measure for each argument that a field of the config lists."""
        return [f"{measure}:{part}" for part in getattr(self.config, field)]

    def progress(self, what: str, done: int, total: int) -> None:
        """Say how far the work is."""
        if self._progress is not None:
            self._progress(what, done, total)

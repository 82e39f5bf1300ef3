"""What an experiment is: one table or figure of a paper, on the user's own models.

Each is a file that reads like the paper's method section. It holds `EXPERIMENT`, its entry; `run(bench)`, which
measures and returns an Outcome; and `draw(result, width)`: figures by name, from the result alone, so that they can be
drawn again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

from studfinder.errors import unknown
from studfinder.models import LM, cached_content_hash, load, model_card
from studfinder.records import ModelCard, Table
from studfinder.records.config import Config, option
from studfinder.runs import Progress, Work
from studfinder.sites import check_causal


@dataclass(frozen=True, kw_only=True)
class Settings(Config):
    """Base of an experiment's settings. Its presets are instances; what a field says is shown by
    `studfinder experiment NAME --help`, where it is an option too."""

    seed: int = option(0, help="For everything that is drawn at random.")


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Settings):
    """Base of the settings of an experiment that trains models; see `TrainingRecipe`."""

    micro: int | None = option(None, help="Sequences a forward pass on one device.", late=True)
    precision: str | None = option(None, help="fp32 or bf16.", late=True)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment's entry.

    Attributes:
        name: e.g. "super-weight/ablation".
        paper: arXiv number.
        shows: which table or figure of the paper; "ours" if nobody has published it.
        summary: what it asks, in one line.
        needs: time and memory with the built-in model on two cores, as measured.
        presets: settings by preset; "cpu" always, "paper" where the paper's own sizes are known. A `limit` among them
            is what --limit sets.
        trains: whether it makes models of its own instead of taking the user's.
    """

    name: str
    paper: str
    shows: str
    summary: str
    needs: str
    presets: Mapping[str, Settings | Mapping[str, Any]]
    trains: bool = False

    def settings(self, preset: str) -> Settings:
        """A preset as a record. Raises StudfinderError if there is none of this name."""
        if preset not in self.presets:
            raise unknown(f"{self.name} has no preset", preset, self.presets)
        given = self.presets[preset]
        if isinstance(given, Settings):
            return given
        fields: list[Any] = []
        for name, value in given.items():
            several = isinstance(value, list | tuple)
            default = option(tuple(value) if several else value, least=1 if name == "limit" else None)
            fields.append((name, Sequence[float] if several else type(value), default))
        base = TrainingSettings if self.trains else Settings
        return make_dataclass("Settings", fields, bases=(base,), frozen=True, kw_only=True)()


@dataclass
class Outcome:
    """What an experiment measured; see `records.Result`."""

    tables: list[Table]
    notes: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)


class Bench:
    """What an experiment works with: models, settings, and a memory of what is already done.

    Attributes:
        models: names or paths, as the user gave them.
        settings: of the preset, with what the user changed.
        work: the run's folder and the steps that are done.
        cards: the models that were loaded so far.
        scans: where a scan that the experiment needs is written, if ./runs has none.
    """

    def __init__(
        self,
        models: tuple[str, ...],
        settings: Mapping[str, Any],
        work: Work,
        progress: Progress | None = None,
        loader: Callable[[str], LM] = load,
        first: LM | None = None,
        scans: Path = Path("runs"),
    ) -> None:
        self.models, self.settings = models, dict(settings)
        self.cards: list[ModelCard] = []
        self.scans = scans
        self.work, self._progress, self._loader = work, progress, loader
        self._lm = first
        self._name = models[0] if first is not None else ""
        self._scope = ""

    @property
    def folder(self) -> Path:
        """Where the run is worked on, for what a long step keeps to go on from (say so with `work.keep()`)."""
        return self.work.path

    @contextmanager
    def model(self, name: str) -> Iterator[LM]:
        """Load a model; steps inside belong to it (to its weights: other weights under the same name begin anew)."""
        if self._name != name or self._lm is None:
            self._lm = None  # the old one is let go before the new one is loaded
            self._lm, self._name = self._loader(name), name
        check_causal(self._lm, "experiments")
        digest = cached_content_hash(self._lm)
        if digest not in [card.content_hash for card in self.cards]:
            self.cards.append(model_card(self._lm, digest, None))
        self._scope = digest[:16]
        try:
            yield self._lm
        finally:
            self._scope = ""

    def once(self, step: str, compute: Callable[[], Any]) -> Any:
        """Do a step, or take its result from an earlier, interrupted run. The value must be plain JSON (records go
        through `to_plain`); it comes back as JSON makes it: tuples as lists, keys as texts."""
        return self.work.steps.once(f"{self._scope}/{step}" if self._scope else step, compute)

    def progress(self, what: str, done: int, total: int) -> None:
        """Say how far the work is."""
        if self._progress is not None:
            self._progress(what, done, total)

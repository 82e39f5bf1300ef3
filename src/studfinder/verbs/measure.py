"""measure: what a model can still do, beside what it could before an edit, or beside another model."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from studfinder.edits import Edit, edited, edits_hash, tied_notes
from studfinder.edits.spec import edits_of
from studfinder.errors import NotApplicable, NoWorkers, StudfinderError
from studfinder.measures import MEASURES, batch_size, measure_named
from studfinder.measures.beside import BESIDE
from studfinder.models import LM, cached_content_hash, config_hash, content_hash, model_card
from studfinder.records import Interval, Measured, RunCard, Scorecard, to_json
from studfinder.records.config import identity, takes
from studfinder.records.presented import Presented
from studfinder.report.result import Sheet, drawing
from studfinder.report.scorecard import draw_scorecard, scorecard_verdict, tables
from studfinder.runs import SCORING, Run, Steps, key_of, now, read, run_of, silent, versions, write_text
from studfinder.sites import check_causal
from studfinder.studies import Grid, ModelVariant
from studfinder.studies.divergence import Beside
from studfinder.studies.workers import Crew, Workers, crew_of, workers_of
from studfinder.texts import WHOLE, encode, proof_text
from studfinder.verbs.configs import MeasureConfig
from studfinder.verbs.gate import WORSE
from studfinder.verbs.load import load_as
from studfinder.verbs.measure_lines import measured_line
from studfinder.verbs.results import write_sheet

DEFAULT = (
    "perplexity",
    "repetition",
    "passkey",
    "lookup",
    "induction",
    "facts-in-context",
    "facts-parametric-matched",
    "facts",
    "tasks:arithmetic",
)
"""Fluency, context, memory and reasoning, from texts and items of our own: they need no download. Arithmetic is
scored by lm-eval (the extra `evaluate`), and left out with a reason where that is not installed."""

SCORECARD_FILE = "scorecard.json"


@dataclass(frozen=True)
class MeasurePlan(Presented):
    """Everything that determines a scorecard, worked out before it starts."""

    lm: LM
    measures: tuple[str, ...]
    edits: tuple[Edit, ...]
    words: tuple[str, ...]
    against: LM | None
    config: MeasureConfig
    settings: dict[str, Any] = field(default_factory=dict)
    named: str = ""
    crew: Crew | None = None


@dataclass
class _MeasureJob:
    """See `studies.worker.Job`; `settings` are the plan's, which a worker's have to equal."""

    model: str
    config: MeasureConfig
    settings: dict[str, Any]
    folder: Path
    tokens: int | None
    _plan: MeasurePlan | None = field(default=None, init=False)

    def follow(self, steps: Steps, _share: str) -> None:
        """See `Job.follow`."""
        if self._plan is None:
            self._plan = plan_measure(self.model, self.config)
        differ = [name for name, value in self.settings.items() if self._plan.settings[name] != value]
        if differ:
            raise NoWorkers(f"a worker finds another {differ[0]}", expected="the same files on all machines")
        _lines(self._plan, steps)


def plan_measure(model: Any, config: MeasureConfig) -> MeasurePlan:
    """Load what is a name, and fix what is measured.

    Raises:
        StudfinderError: no measures, an unknown one, both edits and another model, a model that is not causal, or what
            `load` raises.
    """
    measures = (*(config.measures or ()), *(f"tasks:{name}" for name in config.tasks))
    if config.measures is None and not measures:
        measures = DEFAULT
    if not measures:
        raise StudfinderError("there is nothing to measure", expected="at least one of " + ", ".join(MEASURES))
    if config.edits and config.against is not None:
        raise StudfinderError(
            "both edits and another model as the baseline",
            do="Compare the edited model with itself (--edit) or the model with another (--against)",
        )
    for name in measures:  # said before a model is loaded for nothing
        measure_named(name)
    crew = _crew(model, config) if config.on is not None else None
    lm = load_as(model, config)
    edits = edits_of(lm, config.edits) if config.edits else ()
    against = config.against
    if against is not None and not isinstance(against, LM):
        against = load_as(against, config)
    for one in (lm, against):
        if one is not None:
            check_causal(one, "measures")
            if one.tokenizer is not None:  # said once, not by each measure
                encode(one, proof_text(), limit=WHOLE)
    settings = {
        **identity(config),
        "model": lm.source.id,
        "model_hash": _hash(model, lm),
        "dtype": str(lm.dtype).removeprefix("torch."),
        "measures": ",".join(measures),
        "edits": edits_hash(edits) if edits else "",
        "config": config_hash(lm),
        "device": lm.device.type,
        "against": against.source.id if against is not None else "",
        "against_hash": _hash(config.against, against) if against is not None else "",
        **({"against_dtype": str(against.dtype)} if against is not None and against.dtype != lm.dtype else {}),
        "against_config": config_hash(against) if against is not None else "",
        "scoring": SCORING,
    }
    words: list[str] = []
    for one in config.edits:
        words += [one] if isinstance(one, str) else map(to_json, edits_of(lm, one))
    words += tied_notes(lm, edits)
    distinct = tuple(dict.fromkeys(measures))
    return MeasurePlan(lm, distinct, edits, tuple(words), against, config, settings, str(model), crew)


def _crew(model: Any, config: MeasureConfig) -> Crew:
    """Workers, where there is something to share that can be said to them."""
    if not config.edits and config.against is None:
        raise StudfinderError("--on of one model as it is", expected="two to share: --edit or --against")
    given = (config.against, *config.edits)
    if not isinstance(model, str | os.PathLike) or any(not isinstance(one, str | None) for one in given):
        raise StudfinderError("--on with live models or edits", expected="names, which workers can load themselves")
    return crew_of(str(config.on), gpu=str(config.device).startswith("cuda"))


def _hash(given: Any, lm: LM) -> str:
    """The weights' hash; that of a model that was just loaded is remembered by its files."""
    return content_hash(lm) if isinstance(given, LM) else cached_content_hash(lm)


@takes(MeasureConfig)
def measure(model: LM | str | os.PathLike[str], config: MeasureConfig) -> Scorecard:
    """A scorecard: fluency, context, memory and reasoning side by side, with intervals.

    With `edits` every measure runs on the model as it is and with the edits, on the same items, and the change is
    paired; with `against` the baseline is another model.

    Args:
        model: from `sf.load`, or what it takes.
        config: how; or its fields as keywords, and `measures` may come second. `edits` are what zero(...) and its kin
            return, lines such as "zero:RUN", or several. With `out`, scorecard.json, tables and figure are written
            there; interrupted, the same call goes on where it stopped.

    Raises:
        StudfinderError: see `plan_measure`; or a measure cannot run on this model.
    """
    return run_measure(plan_measure(model, config), command="sf.measure(lm)")[0]


def run_measure(plan: MeasurePlan, *, write: bool = False, command: str = "") -> tuple[Scorecard, Path | None]:
    """Carry out a planned measurement; returns the scorecard and its folder, if one was written (`write` writes one
    at its default place)."""
    config = plan.config
    with nullcontext() if config.tokens is None else batch_size(config.tokens):
        if config.out is None and not write:
            return _measured(plan, Steps(None), command), None
        run = measure_run(plan)
        found = None if config.overwrite else run.finished()
        if found is not None:
            return read(found, Scorecard), found
        sources = [lm.source.folder for lm in (plan.lm, plan.against) if lm is not None]
        with run.work(overwrite=config.overwrite, sources=sources) as work:
            card = _measured(plan, work.steps, command)
            write_text(work.path / SCORECARD_FILE, to_json(card, indent=1))
            write_cards(work.path, [card])
        return card, run.path


def measure_run(plan: MeasurePlan) -> Run:
    """The run of a planned measurement; nothing is written."""
    later = ("config", "against_config", "device", "scoring")
    before = {name: value for name, value in plan.settings.items() if name not in later}
    out = plan.config.folder
    return run_of("measure", plan.lm.source.id, plan.settings, result=SCORECARD_FILE, out=out, before=before)


def _measured(plan: MeasurePlan, steps: Steps, command: str) -> Scorecard:
    started, clock = now(), time.monotonic()
    with ExitStack() as stack:
        if plan.crew is not None:
            config = replace(plan.config, on=None, progress=silent)
            job = _MeasureJob(plan.named, config, plan.settings, Path.cwd(), plan.config.tokens)
            workers = Workers(plan.crew, job, steps, mixed=plan.config.mixed, progress=plan.config.progress)
            steps.executor = stack.enter_context(workers)
        lines = _lines(plan, steps)
    return Scorecard(
        model=model_card(plan.lm, plan.settings["model_hash"], None),
        edits=plan.words,
        against=_against(plan),
        measured=tuple(lines),
        run=RunCard(
            verb="measure",
            key=key_of(plan.settings),
            settings=plan.settings,
            command=command,
            started=started,
            seconds=steps.earlier + time.monotonic() - clock,
            device=str(plan.lm.device),
            seed=plan.config.seed,
            versions={**versions(), **workers_of(steps)},
        ),
    )


def _against(plan: MeasurePlan) -> str:
    if plan.edits:
        return "the same model without the edits"
    return plan.against.source.id if plan.against is not None else ""


def _lines(plan: MeasurePlan, steps: Steps) -> list[Measured]:
    """A line a measure: a grid of the model, and before it of what it is held against, if anything."""
    model = ModelVariant(
        "edited" if plan.edits else "model", partial(edited, plan.lm, plan.edits) if plan.edits else nullcontext
    )
    baseline = [ModelVariant("baseline", lm=plan.against)] if plan.edits or plan.against is not None else []
    grid = Grid(
        run=steps,
        lm=plan.lm,
        variants=[*baseline, model],
        measures=[_beside(plan, name) for name in plan.measures] if baseline else plan.measures,
        limits=dict.fromkeys(MEASURES, plan.config.limit),
        seed=plan.config.seed,
        passes=(NotApplicable,),
        progress=plan.config.progress,
    )
    scored = grid.scored()
    return [measured_line(scored, name) for name in plan.measures]


def _beside(plan: MeasurePlan, name: str) -> str | Beside:
    """A measure of both models at once is a watch."""
    return Beside(name, plan.against, plan.config.limit) if name.partition(":")[0] in BESIDE else name


def card_values(card: Scorecard) -> dict[str, Interval | bool]:
    """What a gate may ask for: every score; its change from the baseline as "NAME.change"; "worse"."""
    found: dict[str, Interval | bool] = {}
    for line in card.measured:
        if line.score is not None:
            found[line.measure] = line.score
        if line.change is not None:
            found[f"{line.measure} change"] = line.change.interval
    return {**found, WORSE: any(line.worse for line in card.measured)}


def write_cards(folder: Path, cards: Sequence[Scorecard]) -> Path:
    """The tables, figure and page of a scorecard, or of several side by side. Raises StudfinderError if the folder
    cannot be made."""
    if folder.exists() and not folder.is_dir():
        raise StudfinderError(f"--out {folder} is a file", expected="a folder, or a name that does not exist yet")
    folder.mkdir(parents=True, exist_ok=True)
    card = cards[0]
    names = ", ".join(dict.fromkeys(card.model.id for card in cards))
    title = f"What {names} can still do" if card.edits or card.against else f"What {names} can do"
    edits = [f"edit: {words}" for card in cards for words in card.edits]
    lead = "; ".join(edits + ([f"against {card.against}"] if card.against else []))
    drawn = drawing("scorecard", partial(draw_scorecard, cards), "The scores with their intervals and chance.")
    charts = {} if drawn is None else {"scorecard": drawn}
    models = [card.model for card in cards]
    sheet = Sheet(
        title=title,
        lead=lead,
        models=models,
        run=card.run,
        record=card if len(cards) == 1 else None,
        tables=tables(cards),
        notes=scorecard_verdict(card) if len(cards) == 1 else (),
        charts=charts,
    )
    return write_sheet(folder, sheet)

"""diagnose: what a finished checkpoint lost against what it was made from, where, why, and what mends it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from studfinder.diagnosis.blocks import block_errors
from studfinder.diagnosis.losses import Losses, losses_of
from studfinder.diagnosis.outputs import engine_beside, engine_outputs
from studfinder.diagnosis.parts import DiffersPart, parts_that_differ
from studfinder.diagnosis.settings import settings_that_differ
from studfinder.diagnosis.verdict import cause_of
from studfinder.measures.perplexity import windows_of
from studfinder.models import LM, cached_content_hash, config_hash, content_hash, model_card
from studfinder.models.original import original_named
from studfinder.records import Diagnosis, Interval, RunCard, to_json
from studfinder.records.config import identity, takes
from studfinder.records.diagnosis import PartDiagnosis, WorstToken
from studfinder.records.presented import Presented
from studfinder.report.diagnosis import diagnosis_sheet
from studfinder.runs import SCORING, Run, key_of, now, read, run_of, versions, write_text
from studfinder.verbs.configs import DiagnoseConfig
from studfinder.verbs.load import load_as
from studfinder.verbs.results import write_sheet

DIAGNOSIS_FILE = "diagnosis.json"
_CONTEXT, _WORST = 12, 10
_TRIED = 4
"""Windows on which settings are tried, and blocks one by one."""


@dataclass(frozen=True)
class DiagnosePlan(Presented):
    """Both models, and what determines the diagnosis."""

    made: LM
    original: LM
    outputs: tuple[list[list[int]], list[list[float]]] | None
    config: DiagnoseConfig
    settings: dict[str, Any]


def plan_diagnose(model: Any, config: DiagnoseConfig) -> DiagnosePlan:
    """Load both.

    Raises:
        StudfinderError: the original is neither named nor at hand, `outputs` cannot be read, or what `load` raises.
    """
    outputs = None if config.outputs is None else engine_outputs(Path(config.outputs))
    against = config.against if config.against is not None else original_named(model)
    made = load_as(model, config)
    original = against if isinstance(against, LM) else load_as(against, config)
    settings = {
        **identity(config),
        "model": made.source.id,
        "model_hash": content_hash(made) if isinstance(model, LM) else cached_content_hash(made),
        "config": config_hash(made),
        "against": original.source.id,
        "against_hash": content_hash(original) if isinstance(against, LM) else cached_content_hash(original),
        "against_config": config_hash(original),
        "dtype": str(made.dtype).removeprefix("torch."),
        "outputs": "" if outputs is None else key_of({"outputs": repr(outputs)}),
        "scoring": SCORING,
    }
    return DiagnosePlan(made, original, outputs, config, settings)


@takes(DiagnoseConfig)
def diagnose(model: LM | str | os.PathLike[str], config: DiagnoseConfig) -> Diagnosis:
    """What a checkpoint lost against what it was made from, in which parts, by which fault, and what mends it.

    Args:
        model: the checkpoint: from `sf.load`, or what it takes.
        config: how; or its fields as keywords. `against` is the original; without it the one that the checkpoint's own
            card or config names, if it is at hand.

    Raises:
        StudfinderError: see `plan_diagnose`; the two are not of one shape.
    """
    return run_diagnose(plan_diagnose(model, config), command="sf.diagnose(model)")[0]


def run_diagnose(plan: DiagnosePlan, *, write: bool = False, command: str = "") -> tuple[Diagnosis, Path | None]:
    """Carry out what was planned, or read it where it is finished; with the run's folder, if there is one."""
    if plan.config.out is None and not write:
        return _diagnosed(plan, command), None
    run = diagnose_run(plan)
    found = None if plan.config.overwrite else run.finished()
    if found is not None:
        return read(found, Diagnosis), found
    sources = [lm.source.folder for lm in (plan.made, plan.original)]
    with run.work(overwrite=plan.config.overwrite, sources=sources) as work:
        done = _diagnosed(plan, command)
        write_text(work.path / DIAGNOSIS_FILE, to_json(done, indent=1))
        write_sheet(work.path, diagnosis_sheet(done))
    return done, run.path


def diagnose_run(plan: DiagnosePlan) -> Run:
    """The run of a planned diagnosis; nothing is written."""
    return run_of(
        "diagnose", plan.made.source.id, plan.settings, result=DIAGNOSIS_FILE, out=plan.config.folder, before={}
    )


def _diagnosed(plan: DiagnosePlan, command: str) -> Diagnosis:
    started, clock = now(), time.monotonic()
    made, original, config = plan.made, plan.original, plan.config
    name, windows = windows_of(original, config.text, window=config.window, limit=config.limit)
    progress = config.progress

    def compared(share: float) -> None:
        progress("comparing weights", int(share * 100), 100)

    found, folded = parts_that_differ(original, made, advance=compared)
    settings = settings_that_differ(original, made, windows[:_TRIED])
    was = folded.was
    blocks = block_errors(original, made, windows[:_TRIED])
    found = _likeliest_first(found, {block.layer: block.injected for block in blocks})
    whole = {name: was[name].detach() for name in folded.differing}
    alone = [{name: folded.tensor(name) for name in part.parameters} for part in found[: config.most]]
    done = 0.0

    def advance(share: float) -> None:
        nonlocal done
        done += share
        progress("putting parts back", int(done * 100), 100)

    losses = losses_of(original, made, windows, [*alone, *([whole] if whole else [])], advance=advance)
    kl = losses.per_token(losses.kl_WT)
    parts = _parts(found, losses, kl, len(alone))
    settings_kl = losses.left(len(alone)) if whole else kl
    engine = None if plan.outputs is None else engine_beside(made, *plan.outputs)
    verdict = cause_of(kl, settings_kl, parts, settings, engine, original.source.id, _head(original))
    return Diagnosis(
        model=model_card(made, plan.settings["model_hash"]),
        original=model_card(original, plan.settings["against_hash"]),
        ill=verdict.ill,
        cause=verdict.cause,
        culprit=verdict.culprit,
        verdict=verdict.sentence,
        mend=verdict.mend,
        text=f"{name}, {len(windows)} windows of up to {max(map(len, windows))} tokens",
        kl=kl,
        back=losses.per_token(losses.back_WT),
        agreement=losses.per_token(losses.agree_WT),
        perplexity=losses.perplexity_ratio,
        settings_kl=settings_kl,
        by_position=_by_position(losses.kl_WT),
        parts=tuple(parts),
        blocks=tuple(blocks),
        worst=tuple(_worst(original, losses.kl_WT, windows)),
        settings=tuple(settings),
        engine=engine,
        run=RunCard(
            verb="diagnose",
            key=key_of(plan.settings),
            settings=plan.settings,
            command=command,
            started=started,
            seconds=time.monotonic() - clock,
            device=str(made.device),
            versions=versions(),
        ),
    )


def _head(lm: LM) -> str:
    """The name of the output matrix."""
    head = lm.model.get_output_embeddings()
    return next((f"{name}.weight" for name, module in lm.model.named_modules() if module is head), "")


def gate_values(found: Diagnosis) -> dict[str, Interval | bool]:
    """What a gate may ask for."""
    return {
        "kl": found.kl,
        "back": found.back,
        "agreement": found.agreement,
        "perplexity": found.perplexity,
        "ill": found.ill,
    }


def _likeliest_first(found: Sequence[DiffersPart], injected: dict[int, float]) -> list[DiffersPart]:
    """What breaks first, then what lies outside the blocks, then by what its block does wrong."""

    def order(part: DiffersPart) -> tuple[bool, float]:
        assert part.worst is not None
        outside = part.layer is None or part.layer not in injected
        return not part.worst[0].breaks, -float("inf") if outside else -injected[part.layer or 0]

    return sorted(found, key=order)


def _parts(found: Sequence[DiffersPart], losses: Losses, kl: Interval, tried: int) -> list[PartDiagnosis]:
    made = []
    for number, part in enumerate(found):
        assert part.worst is not None
        (pattern, matrix), won = part.worst, losses.won(number) if number < tried else None
        words = (
            pattern.words if len(part.parameters) == 1 and matrix in part.parameters else f"{matrix}: {pattern.words}"
        )
        made.append(
            PartDiagnosis(
                name=part.name,
                members=tuple(part.parameters),
                layer=part.layer,
                pattern=pattern.kind,
                words=words,
                breaks=pattern.breaks,
                error=pattern.error,
                won=won,
                share=won.value / kl.value if won is not None and kl.value > 0 else None,
            )
        )
    return sorted(made, key=lambda part: -(part.won.value if part.won else 0.0))


def _by_position(kl_WT: np.ndarray) -> tuple[tuple[int, float], ...]:
    """Means over stretches that double in length."""
    found, start, length = [], 0, 4
    while start < kl_WT.shape[1]:
        piece = kl_WT[:, start : start + length]
        if np.isfinite(piece).any():
            found.append((start + 1, float(np.nanmean(piece))))
        start, length = start + length, length * 2
    return tuple(found)


def _worst(lm: LM, kl_WT: np.ndarray, windows: Sequence[Sequence[int]]) -> list[WorstToken]:
    order = np.argsort(-np.nan_to_num(kl_WT, nan=-1.0).ravel())[:_WORST]
    said = []
    for place in order.tolist():
        window, position = divmod(place, kl_WT.shape[1])
        ids = windows[window]
        if position + 1 >= len(ids):
            continue
        said.append(
            WorstToken(
                window=window,
                position=position + 1,
                context=_words(lm, ids[max(0, position + 1 - _CONTEXT) : position + 1]),
                token=_words(lm, ids[position + 1 : position + 2]),
                kl=float(kl_WT[window, position]),
            )
        )
    return said


def _words(lm: LM, ids: Sequence[int]) -> str:
    return str(list(ids)) if lm.tokenizer is None else lm.tokenizer.decode(ids)

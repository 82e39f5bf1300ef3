"""The work of a diagnosis: everything is compared, and what differs is put back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from studfinder.diagnosis.blocks import block_errors
from studfinder.diagnosis.carriers import what_carries
from studfinder.diagnosis.losses import Losses, losses_of
from studfinder.diagnosis.outputs import engine_beside
from studfinder.diagnosis.parts import DiffersPart, parts_that_differ
from studfinder.diagnosis.predicted import predicted_costs_of
from studfinder.diagnosis.settings import settings_that_differ
from studfinder.diagnosis.token_kinds import loss_by_kind
from studfinder.diagnosis.verdict import cause_of
from studfinder.measures.perplexity import windows_of
from studfinder.models import LM, model_card
from studfinder.records import Diagnosis, Interval, RunCard, SuperWeight
from studfinder.records.diagnosis import PartDiagnosis, WorstToken
from studfinder.records.loading import SourceConfig
from studfinder.runs import key_of, now, versions
from studfinder.verbs.configs import DiagnoseConfig
from studfinder.verbs.diagnose_mend import mend_line, recipe_mend, spared_parts
from studfinder.verbs.diagnose_stored import how_it_is_stored, stored_formats
from studfinder.verbs.recipe_outline import outline_of

_CONTEXT, _WORST = 12, 10
_TRIED = 4
"""Windows on which settings are tried, blocks run one by one, and what carries the model is looked for."""


def diagnosed(
    original: LM,
    made: LM,
    outputs: tuple[list[list[int]], list[list[float]]] | None,
    config: DiagnoseConfig,
    settings: Mapping[str, Any],
    command: str,
    recipe: str,
) -> Diagnosis:
    """Carry out a diagnosis; see `verbs.diagnose`.

    Args:
        recipe: where the mend's recipe will be, in words.
    """
    started, clock = now(), time.monotonic()
    name, windows = windows_of(original, config.text, window=config.window, limit=config.limit)
    progress, few = config.progress, windows[:_TRIED]

    def told(what: str) -> Callable[[float], Any]:
        done = 0.0

        def advance(share: float) -> None:
            nonlocal done
            done += share
            progress(what, int(done * 100), 100)

        return advance

    def compared(share: float) -> None:
        progress("comparing weights", int(share * 100), 100)

    found, folded = parts_that_differ(original, made, advance=compared)
    differing = settings_that_differ(original, made, few)
    names = [name for part in found for name in part.parameters]
    predicted = predicted_costs_of(original, folded, names, windows, advance=told("predicting"))
    blocks = block_errors(original, made, few)
    found = _likeliest_first(found, predicted)
    carried, candidates = what_carries(original, made, folded, few)
    whole = {name: folded.was[name].detach() for name in folded.differing}
    alone = [{name: folded.tensor(name) for name in part.parameters} for part in found[: config.most]]
    back = [*alone, *([whole] if whole else [])]
    losses = losses_of(original, made, windows, back, advance=told("putting parts back"))
    kl = losses.per_token(losses.kl_WT)
    parts = _parts(found, losses, kl, len(alone), predicted)
    settings_kl = losses.left(len(alone)) if whole else kl
    engine = None if outputs is None else engine_beside(made, *outputs)
    verdict = cause_of(
        kl, settings_kl, parts, differing, engine, original.source.id, _head(original), _spikes(candidates)
    )
    spared = spared_parts(parts) if verdict.cause in ("", *(part.pattern for part in parts)) else []
    card = model_card(original, settings["against_hash"])
    outline = outline_of(original, SourceConfig())
    formats = {} if made.source.folder is None else stored_formats(outline.matrices, made.source.folder)
    mend = recipe_mend(card, outline, formats, spared)
    return Diagnosis(
        model=model_card(made, settings["model_hash"]),
        original=card,
        ill=verdict.ill,
        cause=verdict.cause,
        culprit=verdict.culprit,
        verdict=verdict.sentence,
        mend=verdict.mend if mend is None else mend_line(made, original.source.id, spared, recipe),
        recipe=mend,
        text=f"{name}, {len(windows)} windows of up to {max(map(len, windows))} tokens",
        kl=kl,
        back=losses.per_token(losses.back_WT),
        agreement=losses.per_token(losses.agree_WT),
        perplexity=losses.perplexity_ratio,
        settings_kl=settings_kl,
        by_position=_by_position(losses.kl_WT),
        by_kind=loss_by_kind(original.tokenizer, windows, losses.kl_WT),
        stored=how_it_is_stored(made, formats),
        parts=tuple(parts),
        carriers=tuple(carried),
        blocks=tuple(blocks),
        worst=tuple(_worst(original, losses.kl_WT, windows)),
        settings=tuple(differing),
        engine=engine,
        run=RunCard(
            verb="diagnose",
            key=key_of(settings),
            settings=dict(settings),
            command=command,
            started=started,
            seconds=time.monotonic() - clock,
            device=str(made.device),
            versions=versions(),
        ),
    )


def _spikes(candidates: Sequence[SuperWeight]) -> dict[str, tuple[int, float]]:
    """By parameter, the column that meets the largest spike of a super-weight candidate, and that spike."""
    return {one.parameter: (one.col, one.input_spike) for one in reversed(candidates)}


def _head(lm: LM) -> str:
    """The name of the output matrix."""
    head = lm.model.get_output_embeddings()
    return next((f"{name}.weight" for name, module in lm.model.named_modules() if module is head), "")


def _likeliest_first(found: Sequence[DiffersPart], predicted: Mapping[str, float]) -> list[DiffersPart]:
    """What breaks first, then by what it is predicted to cost."""

    def order(part: DiffersPart) -> tuple[bool, float]:
        assert part.worst is not None
        return not part.worst[0].breaks, -_predicted(part, predicted)

    return sorted(found, key=order)


def _predicted(part: DiffersPart, by_name: Mapping[str, float]) -> float:
    return sum(by_name[name] for name in part.parameters)


def _parts(
    found: Sequence[DiffersPart], losses: Losses, kl: Interval, tried: int, predicted: Mapping[str, float]
) -> list[PartDiagnosis]:
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
                predicted=_predicted(part, predicted),
            )
        )
    return sorted(made, key=lambda part: (part.won is None, -(part.won.value if part.won else part.predicted or 0.0)))


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

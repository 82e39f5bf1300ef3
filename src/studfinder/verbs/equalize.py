"""equalize: an equivalent checkpoint that rounds better, and the proof that it is one."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from studfinder.edits import Selection, replaced_stream, selected
from studfinder.errors import StudfinderError, unknown
from studfinder.measures import effects_of
from studfinder.measures.perplexity import windows_of
from studfinder.models import LM, cached_content_hash, check_findings, config_hash, content_hash, model_card
from studfinder.models.beside import files_beside, own_code
from studfinder.quantizers import KVCache, calibration_windows
from studfinder.quantizers.equal import columns, equal_parameters, equalized, on_top
from studfinder.quantizers.formats import candidates, fits_all
from studfinder.quantizers.key_bias import key_biases, value_biases
from studfinder.quantizers.kv_cache import quantized_cache
from studfinder.quantizers.mixed import mixed_stream
from studfinder.quantizers.targets import by_fused, targets
from studfinder.quantizers.verify import meant_of
from studfinder.records import (
    EqualChange,
    EqualCheck,
    EqualGain,
    Equivalence,
    Format,
    ModelCard,
    RunCard,
    format_named,
    to_json,
)
from studfinder.records.config import identity, takes
from studfinder.report.equivalence import equivalence_card, equivalence_sheet
from studfinder.report.words import count
from studfinder.runs import SCORING, Run, check_place, key_of, now, read, run_of, versions, write_text
from studfinder.runs.progress import expect, in_shares
from studfinder.sites import check_causal
from studfinder.stats import ratio_interval
from studfinder.studies import Original
from studfinder.verbs.equalize_config import EQUAL_KINDS, EqualizeConfig
from studfinder.verbs.load import load_as
from studfinder.verbs.publish import check_repository, publish
from studfinder.verbs.quantize_write import settled, write_bench
from studfinder.verbs.results import write_sheet

EQUIVALENCE_FILE = "equivalence.json"
_CHECK, _GAINS = "checking that it is the same", "measuring what rounding costs"
_CACHES = {"KV int8": "int8", "KV fp8": "fp8", "KV int4": "int4"}


@dataclass(frozen=True)
class EqualizePlan:
    """What was settled before anything is measured."""

    lm: LM
    model: ModelCard
    source: LM | str
    config: EqualizeConfig
    kinds: tuple[str, ...]
    neurons: tuple[tuple[int, int], ...]
    context: int
    formats: tuple[Format, ...]
    settings: dict[str, Any] = field(default_factory=dict)


def plan_equalize(model: Any, config: EqualizeConfig) -> EqualizePlan:
    """Load the model where it is a name, and settle what is looked for.

    Raises:
        StudfinderError: an unknown kind or format, findings of another model, a context beyond the model's own, `out`
            is taken, or what `load` raises.
    """
    for one in config.only:
        if one not in EQUAL_KINDS:
            raise unknown("there is nothing to change called", one, EQUAL_KINDS)
    if config.push_to_hub is not None:
        check_repository(config.push_to_hub)
        if config.out is None:
            raise StudfinderError(
                "--push-to-hub uploads a checkpoint that is written", expected="--out FOLDER beside it"
            )
    kinds = tuple(EQUAL_KINDS[one] for one in config.only or EQUAL_KINDS)
    formats = candidates(config.formats) if config.formats else ()
    if any(one.weights is None or one.kept for one in formats):
        raise StudfinderError("a format that keeps or leaves numbers", expected="formats that round every number")
    if format_named(config.target).weights is None:
        raise StudfinderError("--target 16 rounds nothing", expected="the format that the model will be rounded to")
    lm = model if isinstance(model, LM) else load_as(model, config, dtype=config.dtype)
    check_causal(lm, "equalize")
    if config.out is not None:
        check_place(Path(config.out), config.overwrite, [lm.source.folder])
    own = lm.anatomy.max_positions
    if config.context is not None and own is not None and config.context > own:
        raise StudfinderError(
            f"a context of {config.context:,} tokens", expected=f"{own:,} at most, the model's own limit"
        )
    shapes = [target.weight(lm).shape for target in targets(lm)]
    fitting = tuple(one for one in formats if fits_all(one, shapes))
    hash_of = content_hash if isinstance(model, LM) else cached_content_hash
    plain = identity(config)
    card = model_card(lm, hash_of(lm))
    settings = {
        **{name: ", ".join(map(str, one)) if isinstance(one, tuple | list) else one for name, one in plain.items()},
        "text": str(config.text),
        "calibration": str(config.calibration),
        "model": card.id,
        "model_hash": card.content_hash,
        "config": config_hash(lm),
        "findings": "" if config.findings is None else key_of({"findings": str(_neurons(lm, config.findings))}),
        "scoring": SCORING,
    }
    return EqualizePlan(
        lm=lm,
        model=card,
        source=model if isinstance(model, LM) else os.fspath(model),
        config=config,
        kinds=kinds,
        neurons=() if config.findings is None else _neurons(lm, config.findings),
        context=config.context or own or 4096,
        formats=fitting,
        settings=settings,
    )


def _neurons(lm: LM, given: Any) -> tuple[tuple[int, int], ...]:
    chosen = selected(given)
    if not isinstance(chosen, Selection):
        raise StudfinderError("findings that name no super weights", expected="a scan of this model")
    check_findings(lm, chosen.findings)
    return tuple(sorted({(weight.layer, weight.col) for weight in chosen.weights}))


@takes(EqualizeConfig)
def equalize(model: LM | str | os.PathLike[str], config: EqualizeConfig) -> Equivalence:
    """Find an equivalent form of a model that rounds better, show that it is one, and write it.

    Columns that meet a super weight's spike are multiplied by a power of two and what enters them divided by it; biases
    of K that softmax cannot see are taken away; biases of V are moved behind attention. Nothing is written where there
    is nothing to gain, or where the changed model is not shown to be the same.

    Args:
        model: from `sf.load`, or what it takes.
        config: how; or its fields as keywords, and `out` may come second: the new checkpoint's folder.

    Raises:
        StudfinderError: see `plan_equalize`; or the changed model differs by more than `most` nats per token.
    """
    return run_equalize(plan_equalize(model, config), command="sf.equalize(model)")


def run_equalize(plan: EqualizePlan, *, command: str = "") -> Equivalence:
    """Carry out what was planned, or read it where it is finished."""
    config = plan.config
    if config.out is None:
        return _measured(plan, command)
    run = equalize_run(plan)
    there = None if config.overwrite else run.finished()
    if there is not None:
        return read(there, Equivalence)
    files_beside(plan.lm.source)
    made = _measured(plan, command)
    if not made.changes:
        return made
    with run.work(overwrite=config.overwrite, sources=[plan.lm.source.folder], fresh=True) as work:
        _write(plan, made, work.path)
    if config.push_to_hub is not None:
        publish(run.path, config.push_to_hub)
    return made


def equalize_run(plan: EqualizePlan) -> Run:
    """The run of an equivalent checkpoint; nothing is written."""
    out = plan.config.out
    assert out is not None
    return run_of("equalize", plan.model.id, plan.settings, result=EQUIVALENCE_FILE, out=Path(out))


def find_changes(plan: EqualizePlan) -> tuple[list[EqualChange], list[str], str]:
    """What may be changed, what was left alone, and the text that this was chosen on."""
    config, lm = plan.config, plan.lm
    name, windows = calibration_windows(lm, config.calibration, count=config.samples, length=config.length)
    text = f"{name}, {len(windows)} windows of {config.length} tokens"
    changes: list[EqualChange] = []
    notes: list[str] = []
    if "column" in plan.kinds and plan.neurons:
        scheme = format_named(config.target).weights
        assert scheme is not None
        loose = replace(scheme, remainder="block")  # where its blocks do not divide the matrix
        found = columns(lm, plan.neurons, windows, loose)
        changes, notes = changes + found[0], notes + found[1]
    elif "column" in plan.kinds:
        notes.append("columns: no super weight is known (--findings RUN)")
    if "key bias" in plan.kinds:
        found = key_biases(lm, windows, context=plan.context, bound=config.bound)
        changes, notes = changes + found[0], notes + found[1]
    if "value bias" in plan.kinds:
        found = value_biases(lm)
        changes, notes = changes + found[0], notes + found[1]
    return changes, notes, text


def _measured(plan: EqualizePlan, command: str) -> Equivalence:
    started, clock = now(), time.monotonic()
    config, lm = plan.config, plan.lm
    changes, notes, text = find_changes(plan)
    checks: list[EqualCheck] = []
    gains: list[EqualGain] = []
    judged = ""
    if changes:
        parameters = equal_parameters(lm, changes)
        lengths = list(dict.fromkeys(min(length, plan.context) for length in config.lengths))
        expect(config.progress, {_CHECK: 2.0 * sum(lengths), _GAINS: 3.0 * 256 * len(plan.formats)})
        advance = in_shares(config.progress, _CHECK)
        for length in lengths:
            judged, windows = windows_of(lm, config.text, window=length, limit=config.limit)
            checks.append(_check(lm, parameters, windows, length, _part_of(advance, length / sum(lengths))))
        worst = max((one.largest for one in checks), default=float("inf"))
        if not worst <= config.most:
            raise StudfinderError(
                f"the changed model is not the same: KL {worst:.3g} nats per token, more than {config.most:g}",
                do="Give a smaller --bound or --context; nothing was written",
            )
        judged, windows = windows_of(lm, config.text, window=min(256, plan.context), limit=config.limit)
        gains = list(_gains(plan, changes, parameters, windows))
    run = RunCard(
        verb="equalize",
        key=key_of(plan.settings),
        settings=plan.settings,
        command=command,
        started=started,
        seconds=time.monotonic() - clock,
        device=str(lm.device),
        seed=0,
        versions=versions(),
    )
    return Equivalence(
        model=plan.model,
        changes=tuple(changes),
        checks=tuple(checks),
        gains=tuple(gains),
        context=plan.context,
        text=text,
        judged_on=judged,
        verdict=_verdict(changes, checks, gains),
        notes=tuple(notes),
        run=run,
    )


def _part_of(advance: Callable[[float], Any], share: float) -> Callable[[float], None]:
    return lambda done: advance(done * share)


def _check(
    lm: LM,
    parameters: dict[str, torch.Tensor],
    windows: Sequence[Sequence[int]],
    length: int,
    advance: Callable[[float], Any],
) -> EqualCheck:
    effects = effects_of(lm, windows, [replaced_stream(lm, parameters)], advance=advance)
    (sums,), tokens = effects.kl, np.asarray(effects.tokens)
    kl = ratio_interval(sums, tokens) if len(windows) > 1 else None
    return EqualCheck(
        tokens=length,
        windows=len(windows),
        kl=kl,
        largest=float((sums / tokens).max()),
        equal=bool((sums == 0).all()),
    )


def _gains(
    plan: EqualizePlan, changes: Sequence[EqualChange], parameters: dict[str, torch.Tensor], windows: Sequence[Any]
) -> Iterator[EqualGain]:
    """By format of weights, all fused groups rounded to nearest; and where K's or V's biases change, by cache."""
    lm, found = plan.lm, targets(plan.lm)
    under = replaced_stream(lm, parameters)
    advance = _part_of(in_shares(plan.config.progress, _GAINS), 1 / max(1, len(plan.formats)))
    for one in plan.formats:
        all_of_it = dict.fromkeys(by_fused(found), one)
        before = mixed_stream(lm, all_of_it, {}, found)
        after = on_top(under, mixed_stream(lm, all_of_it, {}, found))
        effects = effects_of(lm, windows, [before, after], advance=advance)
        before_kl, after_kl = np.asarray(effects.kl)
        yield _gain(one.name, before_kl, after_kl, np.asarray(effects.tokens))
    if any(change.kind != "column" for change in changes):
        original = Original()
        original.see(lm, windows)
        for name, element in _CACHES.items():
            cache = KVCache(element=element, zero="none" if element == "fp8" else "float")  # type: ignore[arg-type]
            with quantized_cache(lm, cache):
                was = original.kl(lm)
            with equalized(lm, changes), quantized_cache(lm, cache):
                now_is = original.kl(lm)
            yield _gain(name, was.sums, now_is.sums, was.tokens)


def _gain(name: str, before: np.ndarray, after: np.ndarray, tokens: np.ndarray) -> EqualGain:
    return EqualGain(
        stored_as=name,
        before=ratio_interval(before, tokens),
        after=ratio_interval(after, tokens),
        less=ratio_interval(before - after, tokens),
    )


def _verdict(changes: Sequence[EqualChange], checks: Sequence[EqualCheck], gains: Sequence[EqualGain]) -> str:
    if not changes:
        return "nothing to gain here: no change was found that leaves the model what it computes and rounds better."
    same = (
        "bit for bit the same model"
        if all(one.equal for one in checks)
        else f"the same model but for a KL of {max(one.largest for one in checks):.2g} nats per token at most"
    )
    better = [one for one in gains if one.less.low > 0]
    worse = [one for one in gains if one.less.high < 0]
    said = "; ".join(f"{one.stored_as} {one.before.value:.3g} to {one.after.value:.3g}" for one in better)
    lost = f" Worse: {', '.join(one.stored_as for one in worse)}." if worse else ""
    gained = f"rounding costs less in {said}" if better else "no format is shown to gain"
    return f"{count(len(changes), 'change')}, {same}; {gained}.{lost}"


# --- what is written ------------------------------------------------------------------------------------------------


def _write(plan: EqualizePlan, made: Equivalence, stage: Path) -> None:
    with _own(plan) as lm, equalized(lm, made.changes) as bench:
        write_bench(bench, stage, {})
        written = json.loads(lm.model.config.to_json_string(use_diff=False))
        written["architectures"] = [type(lm.model).__name__]
        if plan.config.context is not None:
            written["max_position_embeddings"] = plan.config.context
        settled(stage, lm, own_code(written, stage), {}, (), meant_of(lm, ()))
    write_text(stage / "README.md", equivalence_card(made))
    write_sheet(stage, equivalence_sheet(made))
    write_text(stage / EQUIVALENCE_FILE, to_json(made, indent=1))


@contextmanager
def _own(plan: EqualizePlan) -> Iterator[LM]:
    """The model in the dtype of its checkpoint, which is what is written."""
    if isinstance(plan.source, LM) or plan.config.dtype == "auto":
        yield plan.lm
    else:
        yield load_as(plan.source, replace(plan.config, dtype="auto"), dtype="auto")

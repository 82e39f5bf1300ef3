"""quantize: a checkpoint that plain transformers loads, and a card that says what was done and what was kept."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from studfinder.errors import StudfinderError
from studfinder.models import LM, Source, config_hash, content_hash
from studfinder.models.beside import files_beside, own_code, put_beside
from studfinder.models.files import weights_of
from studfinder.models.fingerprint import marks
from studfinder.models.places import fetched
from studfinder.quantizers import (
    RTN,
    Method,
    seen_in_words,
)
from studfinder.quantizers.apply import prepared, running
from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.fused_scales import shared_of_files
from studfinder.quantizers.source import Files
from studfinder.quantizers.storage import Storage, format_of, in_words
from studfinder.quantizers.targets import targets
from studfinder.quantizers.verify import meant_of, meant_of_files
from studfinder.records import Quantization, read_record, to_plain
from studfinder.records.config import takes
from studfinder.records.outside import read_json
from studfinder.report.words import count
from studfinder.runs import SCORING, Run, Work, key_of, now, run_of, versions
from studfinder.verbs.configs import QuantizeConfig
from studfinder.verbs.publish import publish
from studfinder.verbs.quantize_plan import (
    LaidOut,
    QuantizePlan,
    laid_out,
    plan_quantize,
    source_files,
)
from studfinder.verbs.quantize_scores import scores_of
from studfinder.verbs.quantize_write import (
    QUANTIZATION_FILE,
    settled,
    write_bench,
    write_card,
    write_files,
)


@takes(QuantizeConfig)
def quantize(model: LM | str | os.PathLike[str], config: QuantizeConfig) -> Quantization:
    """Quantise a model and write it as a checkpoint with tokenizer and model card.

    Round to nearest of a folder or a hub id goes from file to file, shard by shard, with the memory of one tensor, and
    continues where it was interrupted; where numbers are kept, the model is mapped from its files, to be held against
    the findings. Other methods, changes before rounding, scores, other dtypes and live models work on the model in
    memory, which is put back afterwards. `out` appears when it is complete.

    Args:
        model: from `sf.load`, or what it takes.
        config: how; or its fields as keywords, and `method` may come second, a name or settings such as RTN(...), which
            say the scheme too. `keep` takes findings (their proven super weights; `Selection` for others), Weights,
            hold_out(...) and skip(...). compressed-tensors has no place for single numbers, so there what is fused with
            a held-out number is skipped whole; `format="dense"` keeps it alone.

    Raises:
        StudfinderError: a scheme that does not fit the matrices or the format; `out` exists; findings of another
            model; calibration text too short; a weight that is not finite; what was written is not what was meant.
    """
    return run_quantize(plan_quantize(model, config))


def run_quantize(plan: QuantizePlan) -> Quantization:
    """Carry out what was planned, or read it where it is finished."""
    files = source_files(plan)
    done = _from_memory(laid_out(plan)) if files is None else _from_files(laid_out(plan), files)
    if plan.config.push_to_hub is not None:
        publish(Path(plan.config.out), plan.config.push_to_hub)
    return done


def _from_files(laid: LaidOut, files: Files) -> Quantization:
    plan, lm = laid.plan, laid.bench.lm
    config, method, source = plan.config, laid.method, plan.lm.source
    assert isinstance(method, RTN)
    with prepared(laid.bench) as bench:  # which writes nothing to the model
        held = bench.held
        names = tuple(target.name for target in bench.targets)
        methods = {name: bench.own(method, name) for name in names}
        wholes, notes = shared_of_files(files, methods, held)
        done = _record(
            plan.model,
            _origin(source),
            method,
            {name: laid.layout[name] for name in names},
            bits=bench.planned,
            quantized=len(names),
            skipped=bench.skipped,
            instead=bench.instead,
            kept=_kept(laid.keep, {name: int(held[name].sum()) for name in names if name in held}),
            notes=(*notes, *laid.notes),
        )
    folder = source.folder or fetched(source)
    signature = {name: marks(folder / name) for name in weights_of(folder).files}
    run = _run(laid, done, files=signature, config=config_hash(lm))
    there = None if config.overwrite else run.finished()
    if there is not None:
        return read_record(Quantization, there / QUANTIZATION_FILE)
    files_beside(source)
    meant = meant_of_files(lm) if config.verify else None
    with run.work(overwrite=config.overwrite, sources=[folder]) as work, _resumable(work):
        write_files(config.progress, files, work.path, methods, laid.layout, wholes, held, meant)
        put_beside(source, work.path)
        written = read_json(files.folder / "config.json")
        done = replace(done, verified=settled(work.path, lm, written, laid.layout, bench.targets, meant, files=files))
        write_card(work.path, done)
    return done


def _origin(source: Source) -> str:
    return source.origin + (f", commit {source.revision}" if source.revision else "")


def _run(laid: LaidOut, done: Quantization, **model: Any) -> Run:
    """The run's identity: the model, and everything in the record but what comes out of the work itself."""
    asked = laid.plan.config
    came = ("bits", "quantized", "notes", "instead", "verified", "scores", "versions", "made", "engines")
    settings = {name: value for name, value in to_plain(done).items() if name not in came}
    if len(set(laid.layout.values())) > 1:
        settings["layout"] = key_of({name: str(stored) for name, stored in laid.layout.items()})
    identity = {**settings, **model, "score": asked.score, "verify": asked.verify, "scoring": SCORING}
    return run_of("quantize", done.model, identity, result=QUANTIZATION_FILE, out=Path(asked.out))


@contextmanager
def _resumable(work: Work) -> Iterator[None]:
    """Shards that were written stay after an interruption, and go after a mistake, which they may be part of."""
    try:
        yield
    except StudfinderError:
        work.kept = False
        raise
    except BaseException:
        work.keep()
        raise


def _from_memory(laid: LaidOut) -> Quantization:
    config, bench = laid.plan.config, laid.bench
    lm = bench.lm
    planned = _record(
        lm.source.id,
        _origin(lm.source),
        laid.method,
        laid.layout,
        bits=0.0,
        quantized=0,
        skipped=(),
        kept=tuple(map(repr, laid.keep)),
        calibration=laid.text,
    )
    run = _run(
        laid,
        planned,
        model_hash=content_hash(lm),
        config=config_hash(lm),
        dtype=str(lm.dtype),
        windows=key_of({"windows": bench.windows}),
    )
    there = None if config.overwrite else run.finished()
    if there is not None:
        return read_record(Quantization, there / QUANTIZATION_FILE)
    files_beside(lm.source)
    # Nothing of an earlier try can be used: the bench is in memory.
    with run.work(overwrite=config.overwrite, sources=[lm.source.folder], fresh=True) as work:
        with running(bench, laid.method):
            done = replace(
                planned,
                bits=bench.bits,
                quantized=len(bench.done),
                skipped=tuple(bench.skipped),
                instead=tuple(bench.instead),
                kept=_kept(laid.keep, _held_out(bench)),
                notes=(*bench.notes, *laid.notes),
            )
            write_bench(bench, work.path, laid.layout)
            chosen = [target for target in targets(lm) if target.name in bench.done]
            written = json.loads(lm.model.config.to_json_string(use_diff=False))
            written["architectures"] = [type(lm.model).__name__]
            meant = meant_of(lm, () if laid.format == "dense" else chosen) if config.verify else None
            written = own_code(written, work.path)
            done = replace(done, verified=settled(work.path, lm, written, laid.layout, chosen, meant))
        if config.score:
            done = replace(done, scores=scores_of(lm, work.path))
        write_card(work.path, done)
    return done


def _held_out(bench: Workbench) -> dict[str, int]:
    """Of each matrix how many numbers were kept."""
    return {name: made.kept.index_N.numel() for name, made in bench.done.items() if made.kept is not None}


def _kept(keep: Sequence[Any], held: Mapping[str, int]) -> tuple[str, ...]:
    """What was asked for, and how many numbers that came to."""
    came = f"in all {sum(held.values()):,} numbers of {count(len(held), 'matrix', 'matrices')} are held out"
    return (*map(str, keep), *([came] if held else []))


def _record(model: str, origin: str, method: Method, layout: Mapping[str, Storage], **rest: Any) -> Quantization:
    # As JSON has them, so that the record reads back as it was; infinity as a text, as records write it.
    plain = json.dumps(dataclasses.asdict(method), default=str)  # type: ignore[call-overload]
    return Quantization(
        model=model,
        origin=origin,
        method=type(method).__name__,
        settings=json.loads(plain, parse_constant=str),
        scheme=in_words(layout),
        engines=_engines(layout),
        stored_as=format_of(layout.values()),
        versions=versions(),
        made=now(),
        **rest,
    )


def _engines(layout: Mapping[str, Storage]) -> str:
    """Where checkpoints of these formats were seen to load, in words."""
    stored = layout.values()
    if format_of(stored) == "dense":
        return "whatever loads the model: the weights are dense"
    return seen_in_words(tuple(dict.fromkeys(one.named for one in stored)))

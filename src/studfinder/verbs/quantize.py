"""quantize: a checkpoint that plain transformers loads, and a card that says what was done and what was kept."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from studfinder.errors import StudfinderError
from studfinder.models import BUILTINS, LM, config_hash, content_hash, load
from studfinder.models.beside import carry, files_beside, own_code
from studfinder.models.builtin import ensure
from studfinder.quantizers import RTN, Clip, Method, Scheme, Target, bits_per_weight, calibration_windows, kernel
from studfinder.quantizers.apply import bench_for, check_fits, running
from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.export import chosen_format
from studfinder.quantizers.fused_scales import shared_of_files
from studfinder.quantizers.keep import Skip, as_keeps, resolve
from studfinder.quantizers.source import Files, open_files, skeleton
from studfinder.quantizers.targets import targets
from studfinder.quantizers.verify import meant_of, meant_of_files
from studfinder.records import Quantization, read_record, to_plain
from studfinder.records.outside import read_json
from studfinder.report.words import count
from studfinder.runs import SCORING, Progress, Run, Work, check_place, key_of, now, run_of, versions
from studfinder.verbs.quantize_scores import scores_of
from studfinder.verbs.quantize_write import (
    QUANTIZATION_FILE,
    Job,
    acts_of,
    rest_of,
    verified,
    write_bench,
    write_card,
    write_config,
    write_files,
)

_GROUPS = (128, 64, 32)


def default_scheme(shapes: Collection[tuple[int, ...]], dtype: torch.dtype) -> Scheme:
    """4 bits, integer zero point, groups of 128, or of 64 or 32 where 128 does not divide every matrix.

    Args:
        shapes: (out, in) of what is quantised.
        dtype: of the model, in which scales are stored.
    """
    sizes = [size for size in _GROUPS if all(shape[1] % size == 0 for shape in shapes)]
    scale: Any = str(dtype).removeprefix("torch.")
    return Scheme(block=sizes[0] if sizes else "channel", zero="integer", scale=scale)


def shapes_of(source: LM | Path) -> tuple[dict[str, tuple[int, ...]], torch.dtype]:
    """(out, in) of every matrix that is quantised, by parameter name, and their dtype.

    Args:
        source: a model, or the folder of one, which is not loaded.
    """
    if isinstance(source, LM):
        return {t.name: tuple(t.weight(source).shape) for t in targets(source)}, source.dtype
    files = open_files(source)
    if files is None:
        return shapes_of(load(source))
    stored = files.stored
    return {name: stored[name][1] for name in files.targets}, stored[next(iter(files.targets))][0]


def quantize(
    source: LM | str | os.PathLike,
    method: Method | None = None,
    *,
    keep: Any = None,
    out: str | os.PathLike,
    format: str = "auto",
    calibration: str | Path = "wikipedia",
    samples: int = 128,
    length: int = 512,
    score: bool = False,
    verify: bool = True,
    overwrite: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Quantization:
    """Quantise a model and write it as a checkpoint with tokenizer and model card.

    Round to nearest goes from file to file, shard by shard, without building the model (memory of one tensor), and
    continues where it was interrupted. Other methods, findings and live models work on the model in memory, which is
    put back afterwards. `out` appears when it is complete.

    Args:
        source: an LM, a built-in name, a folder or a hub id.
        method: its settings; the default is RTN with clip search in the `default_scheme`.
        keep: findings, hold_out(...), skip(...), transforms, or several. compressed-tensors has no place for single
            numbers, so there what is fused with a held-out number is skipped whole; `format="dense"` keeps it alone.
        format: "auto", a name of `export.FORMATS`, or "dense": dequantised weights.
        calibration, samples, length: text and size of the calibration windows, for methods that need them.
        score: put KL(original || quantised) and the perplexity of our proof text and of a public one into the card,
            measured on the files; needs the model in memory, and room for it once more.
        verify: load what was written with plain transformers in a fresh process and compare it with what was meant
            before it appears as `out`; see `quantizers.verify`.

    Raises:
        StudfinderError: a scheme that does not fit the matrices or the format; `out` exists; findings of another
            model; calibration text too short; a weight that is not finite; what was written is not what was meant.
    """
    job = Job(Path(out), format, score, verify, overwrite, progress)
    folder = folder_of(source)
    check_place(job.out, overwrite, [source.source.folder if isinstance(source, LM) else folder])
    if folder is not None and (method is None or isinstance(method, RTN)) and _only_skips(keep) and not score:
        files = open_files(folder)
        if files is not None:
            return _from_files(job, str(source), files, method, keep)
    lm = source if isinstance(source, LM) else load(source)
    return _from_memory(job, lm, method, keep, (calibration, samples, length))


def _from_files(job: Job, name: str, files: Files, method: RTN | None, keep: Any) -> Quantization:
    found, stored = tuple(files.targets.values()), files.stored
    dtype = stored[found[0].name][0]
    method = method or RTN(
        scheme=default_scheme({t.name: stored[t.name][1] for t in found}.values(), dtype), clip=Clip()
    )
    lm = skeleton(files.folder)
    _, skipped = resolve(lm, found, keep)
    chosen = tuple(target for target in found if target.fused not in skipped)
    names = tuple(target.name for target in chosen)
    if not chosen:
        raise StudfinderError("everything is skipped", expected="at least one matrix to quantise")
    for target in names:
        check_fits(target, stored[target][1], method)
    format = _one_format(method, job.format, {stored[target][0] for target in names}, found)
    wholes, notes = shared_of_files(files, names, method)
    done = _record(
        name,
        BUILTINS[name].origin if name in BUILTINS else "a local folder",
        method,
        format,
        bits=_bits(files, names, method.scheme),
        quantized=len(names),
        skipped=tuple(sorted(skipped)),
        kept=tuple(map(str, _flat(keep))),
        notes=tuple(notes),
    )
    run = _run(job, done, files=files.signature(), config=config_hash(lm))
    there = None if job.overwrite else run.finished()
    if there is not None:
        return read_record(Quantization, there / QUANTIZATION_FILE)
    files_beside(lm.source)
    meant = meant_of_files(lm) if job.verify else None
    with run.work(overwrite=job.overwrite, sources=[files.folder]) as work, _resumable(work):
        write_files(job, files, work.path, dict.fromkeys(names, method), format, wholes, meant)
        carry(lm.source, work.path)
        config = read_json(files.folder / "config.json")
        write_config(work.path, config, done, method, chosen, rest_of(lm, chosen, files))
        done = replace(done, verified=verified(work.path, lm, meant, done, chosen, live=False))
        write_card(work.path, done)
    return done


def _run(job: Job, done: Quantization, **model: Any) -> Run:
    """The run's identity: the model, and everything in the record but what comes out of the work itself."""
    came = ("bits", "quantized", "notes", "instead", "verified", "scores", "versions", "made", "kernel")
    settings = {name: value for name, value in to_plain(done).items() if name not in came}
    identity = {**settings, **model, "score": job.score, "verify": job.verify, "scoring": SCORING}
    return run_of("quantize", done.model, identity, result=QUANTIZATION_FILE, out=job.out)


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


def _from_memory(job: Job, lm: LM, method: Method | None, keep: Any, calibration: tuple) -> Quantization:
    found = targets(lm)
    if method is None:
        method = RTN(scheme=default_scheme([tuple(t.weight(lm).shape) for t in found], lm.dtype), clip=Clip())
    format = chosen_format(method.scheme, job.format, lm.dtype, found, acts=acts_of(method, job.format) is not None)
    notes = list(lm.source.notes)
    if format == "dense" and hasattr(method, "weights_only"):
        method = method.weights_only
        notes.append("a dense checkpoint holds weights only: whoever loads it does not round inputs")
    text: str | None = None
    windows: Sequence[Sequence[int]] = ()
    if method.calibrated or any(getattr(one, "calibrated", False) for one in _flat(keep)):
        origin, windows = calibration_windows(lm, calibration[0], count=calibration[1], length=calibration[2])
        text = f"{origin}, {len(windows)} windows of {calibration[2]} tokens"
    keep = as_keeps(lm, keep)  # while the model is as it was scanned: inside, findings would be of another one
    bench = bench_for(lm, method, keep=keep, windows=windows, progress=job.progress)
    bench.numbers = format == "dense"
    planned = _record(
        lm.source.id,
        lm.source.origin + (f", commit {lm.source.revision}" if lm.source.revision else ""),
        method,
        format,
        bits=0.0,
        quantized=0,
        skipped=(),
        kept=tuple(map(repr, keep)),
        calibration=text,
    )
    run = _run(
        job,
        planned,
        model_hash=content_hash(lm),
        config=config_hash(lm),
        dtype=str(lm.dtype),
        windows=key_of({"windows": windows}),
    )
    there = None if job.overwrite else run.finished()
    if there is not None:
        return read_record(Quantization, there / QUANTIZATION_FILE)
    files_beside(lm.source)
    # Nothing of an earlier try can be used: the bench is in memory.
    with run.work(overwrite=job.overwrite, sources=[lm.source.folder], fresh=True) as work:
        with running(bench, method):
            done = replace(
                planned,
                bits=bench.bits,
                quantized=len(bench.done),
                skipped=tuple(bench.skipped),
                instead=tuple(bench.instead),
                kept=_kept(bench, keep),
                notes=(*bench.notes, *notes),
            )
            write_bench(bench, work.path, format)
            chosen = [target for target in found if target.name in bench.done]
            config = json.loads(lm.model.config.to_json_string(use_diff=False))
            config["architectures"] = [type(lm.model).__name__]
            write_config(work.path, own_code(config, work.path), done, method, chosen, rest_of(lm, chosen))
            meant = meant_of(lm) if job.verify else None
            done = replace(done, verified=verified(work.path, lm, meant, done, chosen, live=True, method=method))
        if job.score:
            done = replace(done, scores=scores_of(lm, work.path))
        write_card(work.path, done)
    return done


def _kept(bench: Workbench, keep: Sequence[Any]) -> tuple[str, ...]:
    """What was asked for, and how many numbers that came to."""
    held = [made.kept.index_N.numel() for made in bench.done.values() if made.kept is not None]
    came = f"in all {sum(held):,} numbers of {count(len(held), 'matrix', 'matrices')} are held out"
    return (*map(str, keep), *([came] if keep and bench.numbers else []))


def _record(model: str, origin: str, method: Method, format: str, **rest: Any) -> Quantization:
    # As JSON has them, so that the record reads back as it was.
    settings = json.loads(json.dumps(dataclasses.asdict(method), default=str))  # type: ignore[call-overload]
    rounded = acts_of(method, format)
    acts = None if rounded is None else f"{'int' if rounded['type'] == 'int' else 'fp'}{rounded['num_bits']}"
    return Quantization(
        model=model,
        origin=origin,
        method=type(method).__name__,
        settings=settings,
        scheme=str(method.scheme),
        kernel=None if format == "dense" else kernel(method.scheme, acts=acts),
        stored_as=format,
        versions=versions(),
        made=now(),
        **rest,
    )


def _one_format(method: Method, asked: str, dtypes: set[torch.dtype], found: Sequence[Target]) -> str:
    formats = {chosen_format(method.scheme, asked, dtype, found) for dtype in dtypes}
    return formats.pop()


def _bits(files: Files, chosen: Collection[str], scheme: Scheme) -> float:
    bits = total = 0.0
    for name in files.targets:
        dtype, shape = files.stored[name]
        size = torch.Size(shape).numel()
        bits += size * (bits_per_weight(shape, scheme) if name in chosen else 8 * dtype.itemsize)
        total += size
    return bits / total


def folder_of(source: Any) -> Path | None:
    """The folder that a name stands for, where it is here; None for a live model or a hub id."""
    if isinstance(source, LM):
        return None
    if str(source) in BUILTINS:
        return ensure(BUILTINS[str(source)])
    path = Path(source).expanduser()
    return path if str(source) and (path / "config.json").is_file() else None


def _only_skips(keep: Any) -> bool:
    return all(isinstance(one, Skip) for one in _flat(keep))


def _flat(keep: Any) -> list[Any]:
    if isinstance(keep, list | tuple):
        return [one for part in keep for one in _flat(part)]
    return [] if keep is None else [keep]

"""quantize: a checkpoint that plain transformers loads, and a card that says what was done and what was kept."""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from studfinder.errors import StudfinderError
from studfinder.models import BUILTINS, LM, load
from studfinder.models.beside import carry, own_code
from studfinder.models.builtin import ensure
from studfinder.quantizers import RTN, Clip, Method, Scheme, Target, bits_per_weight, calibration_windows, kernel
from studfinder.quantizers.apply import bench_for, check_fits, running
from studfinder.quantizers.bench import Bench, Progress
from studfinder.quantizers.card import Quantization, card
from studfinder.quantizers.checkpoint import Entry, check_free, shards, staged, write_index, write_shard
from studfinder.quantizers.entries import bench_entries, file_entry
from studfinder.quantizers.export import chosen_format, quantization_config
from studfinder.quantizers.fused_scales import shared_of_files
from studfinder.quantizers.keep import Skip, as_keeps, resolve
from studfinder.quantizers.source import Files, open_files, skeleton
from studfinder.quantizers.targets import others, targets
from studfinder.quantizers.verify import Meant, meant_of, meant_of_files
from studfinder.quantizers.verify import verify as verify_checkpoint
from studfinder.report.words import count
from studfinder.runs import now, versions, write_text
from studfinder.verbs.quantize_scores import scores_of

_GROUPS = (128, 64, 32)
_UNVERIFIED = "not verified: the files were not looked at again (--no-verify)"


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
    job = _Job(Path(out).absolute(), format, score, verify, overwrite, progress)
    check_free(job.out, overwrite)
    folder = folder_of(source)
    own = source.source.folder if isinstance(source, LM) else folder
    if own is not None and own.resolve() == job.out.resolve():
        raise StudfinderError(f"--out {out} is the model itself", do="Choose another folder")
    if folder is not None and (method is None or isinstance(method, RTN)) and _only_skips(keep) and not score:
        files = open_files(folder)
        if files is not None:
            return _from_files(job, str(source), files, method, keep)
    lm = source if isinstance(source, LM) else load(source)
    return _from_memory(job, lm, method, keep, (calibration, samples, length))


@dataclass(frozen=True)
class _Job:
    out: Path
    format: str
    score: bool
    verify: bool
    overwrite: bool
    progress: Progress


def _from_files(job: _Job, name: str, files: Files, method: RTN | None, keep: Any) -> Quantization:
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
    settings = {"files": files.signature(), "method": done.settings, "skipped": done.skipped, "format": format}
    meant = meant_of_files(lm) if job.verify else None
    with staged(job.out, settings, job.overwrite) as stage:
        _write_files(job, files, stage, dict.fromkeys(names, method), format, wholes, meant)
        carry(lm.source, stage)
        config = json.loads((files.folder / "config.json").read_text(encoding="utf-8"))
        _write_config(stage, config, done, method, chosen, _others(lm, chosen, files))
        done = replace(done, verified=_verified(stage, lm, meant, done, chosen, live=False))
        _write_card(stage, done)
    return done


def _write_files(
    job: _Job,
    files: Files,
    stage: Path,
    methods: Mapping[str, RTN],
    format: str,
    wholes: Mapping[str, torch.Tensor],
    meant: Meant | None,
) -> None:
    total, count = len(files.stored), 0

    def step(_entry: Entry) -> None:
        nonlocal count
        count += 1
        job.progress("quantise", count, total)

    written = {}
    for shard, names in files.shards.items():
        written[shard] = [
            file_entry(files, shard, name, methods.get(name), format, wholes.get(name), meant) for name in names
        ]
        if not (stage / shard).is_file():
            write_shard(stage / shard, written[shard], step)
            continue
        count += len(names)  # made before an interruption
        for entry in written[shard] if meant is not None else ():
            entry.make()  # once more, to know what it was to hold
    write_index(stage, written)


def _from_memory(job: _Job, lm: LM, method: Method | None, keep: Any, calibration: tuple) -> Quantization:
    found = targets(lm)
    if method is None:
        method = RTN(scheme=default_scheme([tuple(t.weight(lm).shape) for t in found], lm.dtype), clip=Clip())
    format = chosen_format(method.scheme, job.format, lm.dtype, found, acts=_acts(method, job.format) is not None)
    notes = []
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
    # Nothing of an earlier try can be used: what it wrote depends on more than settings say.
    with staged(job.out, {"run": uuid.uuid4().hex}, job.overwrite, resumable=False) as stage:
        with running(bench, method):
            done = _record(
                lm.source.id,
                lm.source.origin,
                method,
                format,
                bits=bench.bits,
                quantized=len(bench.done),
                skipped=bench.skipped,
                instead=bench.instead,
                kept=_kept(bench, keep),
                notes=(*bench.notes, *notes),
                calibration=text,
            )
            _write_bench(bench, stage, format)
            chosen = [target for target in found if target.name in bench.done]
            config = json.loads(lm.model.config.to_json_string(use_diff=False))
            config["architectures"] = [type(lm.model).__name__]
            _write_config(stage, own_code(config, stage), done, method, chosen, _others(lm, chosen))
            meant = meant_of(lm) if job.verify else None
            done = replace(done, verified=_verified(stage, lm, meant, done, chosen, live=True, method=method))
        if job.score:
            done = replace(done, scores=scores_of(lm, stage))
        _write_card(stage, done)
    return done


def _write_bench(bench: Bench, stage: Path, format: str) -> None:
    """The weights, and what lies beside them: of the source's files, with the tokenizer in memory over them."""
    lm = bench.lm
    parts = shards(bench_entries(bench, format))
    files = dict(zip(_shard_names(len(parts)), parts, strict=True))
    for file, entries in files.items():
        write_shard(stage / file, entries)
    write_index(stage, files)
    carry(lm.source, stage)
    if lm.tokenizer is not None:
        lm.tokenizer.save_pretrained(stage)
    generation = getattr(lm.model, "generation_config", None)
    if generation is not None and not (stage / "generation_config.json").exists():
        generation.save_pretrained(stage)


def _others(lm: LM, chosen: Sequence[Target], files: Files | None = None) -> list[str]:
    """What else holds a matrix: in the model, and in files that it does not load, e.g. heads for further tokens."""
    modules = [target.ref.module for target in chosen]
    found = others([lm.model], modules)
    if files is None:
        return found
    known = {name for name, _ in lm.model.named_modules(remove_duplicate=False)}
    stored = (name.removesuffix(".weight") for name, (_, shape) in files.stored.items() if len(shape) == 2)
    return [*found, *(name for name in stored if name not in known and "." in name and not name.endswith(".bias"))]


def _verified(
    stage: Path,
    lm: LM,
    meant: Meant | None,
    done: Quantization,
    chosen: Sequence[Target],
    *,
    live: bool,
    method: Method | None = None,
) -> str:
    if meant is None:
        return _UNVERIFIED
    modules = () if done.format == "dense" else [target.ref.module for target in chosen]
    rounded = method is not None and _acts(method, done.format) is not None
    return verify_checkpoint(stage, lm, meant, modules, live=live, rounded_inputs=rounded)


def _kept(bench: Bench, keep: Sequence[Any]) -> tuple[str, ...]:
    """What was asked for, and how many numbers that came to."""
    held = [made.kept.index_N.numel() for made in bench.done.values() if made.kept is not None]
    came = f"in all {sum(held):,} numbers of {count(len(held), 'matrix', 'matrices')} are held out"
    return (*map(str, keep), *([came] if keep and bench.numbers else []))


def _write_config(
    stage: Path, config: dict[str, Any], done: Quantization, method: Method, chosen: Sequence[Target], rest: list[str]
) -> None:
    if done.format != "dense":
        modules = [target.ref.module for target in chosen]
        config["quantization_config"] = quantization_config(
            method.scheme,
            done.format,
            modules,
            rest,
            _acts(method, done.format),
            linear=all(target.linear for target in chosen),
        )
    write_text(stage / "config.json", json.dumps(config, indent=2))


def _write_card(stage: Path, done: Quantization) -> None:
    write_text(stage / "studfinder.json", json.dumps(dataclasses.asdict(done), indent=1, default=str))
    write_text(stage / "README.md", card(done))


def _acts(method: Method, format: str) -> dict[str, Any] | None:
    """How a checkpoint says that activations are rounded; asked before any work, since not every way can be said."""
    return None if format == "dense" else getattr(method, "activation_arguments", None)


def _record(model: str, origin: str, method: Method, format: str, **rest: Any) -> Quantization:
    settings = dataclasses.asdict(method)  # type: ignore[call-overload]
    rounded = _acts(method, format)
    acts = None if rounded is None else f"{'int' if rounded['type'] == 'int' else 'fp'}{rounded['num_bits']}"
    return Quantization(
        model=model,
        origin=origin,
        method=type(method).__name__,
        settings=settings,
        scheme=str(method.scheme),
        kernel=None if format == "dense" else kernel(method.scheme, acts=acts),
        format=format,
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


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


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

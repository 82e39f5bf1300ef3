"""The parts of a quantised checkpoint on disk: weights, what lies beside them, config, card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.models.beside import put_beside
from studfinder.models.inside import outward
from studfinder.quantizers import RTN, Target
from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.card import card
from studfinder.quantizers.checkpoint import TensorGroup, shards, write_index, write_shard
from studfinder.quantizers.entries import bench_entries, file_entry
from studfinder.quantizers.export import quantization_config
from studfinder.quantizers.source import Files
from studfinder.quantizers.storage import Storage
from studfinder.quantizers.targets import other_matrices
from studfinder.quantizers.verify import Meant, verify
from studfinder.records import Quantization, to_json
from studfinder.runs import Progress, write_text

QUANTIZATION_FILE = "studfinder.json"
_UNVERIFIED = "not verified: the files were not looked at again (--no-verify)"


def write_files(
    progress: Progress,
    files: Files,
    stage: Path,
    methods: Mapping[str, RTN],
    layout: Mapping[str, Storage],
    wholes: Mapping[str, torch.Tensor],
    held: Mapping[str, torch.Tensor],
    meant: Meant | None,
) -> None:
    total, count = len(files.stored), 0

    def step(_entry: TensorGroup) -> None:
        nonlocal count
        count += 1
        progress("quantise", count, total)

    written = {}
    for shard, names in files.shards.items():
        written[shard] = [
            file_entry(
                files,
                name,
                methods.get(name),
                layout[name].format if name in methods else None,
                wholes.get(name),
                meant,
                held.get(name),
            )
            for name in names
        ]
        place = outward(stage, shard, files.folder)
        if not place.is_file():
            write_shard(place, written[shard], step)
            continue
        count += len(names)  # made before an interruption
        for entry in written[shard] if meant is not None else ():
            entry.make()  # once more, to know what it was to hold
    write_index(stage, written)


def write_bench(bench: Workbench, stage: Path, layout: Mapping[str, Storage]) -> None:
    """The weights, and what lies beside them: of the source's files, with the tokenizer in memory over them."""
    lm = bench.lm
    parts = shards(bench_entries(bench, layout))
    files = dict(zip(_shard_names(len(parts)), parts, strict=True))
    for file, entries in files.items():
        write_shard(stage / file, entries)
    write_index(stage, files)
    put_beside(lm.source, stage)
    if lm.tokenizer is not None:
        lm.tokenizer.save_pretrained(stage)
    generation = getattr(lm.model, "generation_config", None)
    if generation is not None and not (stage / "generation_config.json").exists():
        generation.save_pretrained(stage)


def rest_of(lm: LM, chosen: Sequence[Target], files: Files | None = None) -> list[str]:
    """What else holds a matrix: in the model, and in files that it does not load, e.g. heads for further tokens."""
    modules = [module for target in chosen for module in target.modules]
    found = other_matrices([lm.model], modules)
    if files is None:
        return found
    known = {*modules, *(name for name, _ in lm.model.named_modules(remove_duplicate=False))}
    stored = (name.removesuffix(".weight") for name, (_, shape) in files.stored.items() if len(shape) == 2)
    return [*found, *(name for name in stored if name not in known and "." in name and not name.endswith(".bias"))]


def settled(
    stage: Path,
    lm: LM,
    config: dict[str, Any],
    layout: Mapping[str, Storage],
    chosen: Sequence[Target],
    meant: Meant | None,
    *,
    files: Files | None = None,
) -> str:
    """Write config.json, and hold the checkpoint against what was meant: in words, what was checked.

    Some classes look for a `weight` before their modules' own forward, or beside it, and are to have dense weights as
    soon as they are loaded; a few others cannot be loaded so. What is likely is tried first. Raises as `verify`.
    """
    groups: dict[tuple[Storage, bool], list[str]] = {}
    for target in chosen:
        if layout[target.name].format != "dense":
            groups.setdefault((layout[target.name], target.part is not None), []).extend(target.modules)
    modules = [module for names in groups.values() for module in names]
    kinds = {stored for stored, _ in groups}
    groups = groups if len(kinds) > 1 else {(stored, False): modules for stored in kinds}
    acts = any(stored.inputs is not None for stored in kinds)
    owners = [lm.model.get_submodule(target.ref.module) for target in chosen]
    odd = any(target.also for target in chosen) or any(type(owner) is not nn.Linear for owner in owners)
    rest = rest_of(lm, chosen, files)
    config = {name: value for name, value in config.items() if name != "transformers_weights"}  # they were written anew
    # Of dense weights transformers does not round the inputs.
    for dense in (False,) if not modules or acts else (odd, not odd):
        if modules:
            config["quantization_config"] = quantization_config(groups, rest, dense=dense)
        write_text(stage / "config.json", json.dumps(config, indent=2))
        if meant is None:
            return _UNVERIFIED
        try:
            return verify(stage, lm, meant, modules, live=files is None, rounded_inputs=acts)
        except StudfinderError as error:
            failed = error if len(kinds) < 2 else _of_many(error)
    raise failed


def _of_many(error: StudfinderError) -> StudfinderError:
    said = "It knows one scheme of weights that it decompresses as it loads them, and these have several"
    return StudfinderError(error.what, expected=error.expected, do=f"{said}. {error.do}")


def write_card(stage: Path, done: Quantization) -> None:
    write_text(stage / QUANTIZATION_FILE, to_json(done, indent=1))
    write_text(stage / "README.md", card(done))


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]

"""How a checkpoint is stored: matrices in another format than others of their kind, and scales that cannot be right."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.models.files import SAFE, held_in
from studfinder.recipes import NamedMatrix, read_rules_file, rule_set
from studfinder.records import UNTOUCHED
from studfinder.records.diagnosis import StoredDiagnosis

_SCALES = re.compile(r"(scales?|scale_inv|absmax)$")
_FULL = 0.01
"""The share of scales at the top of their format from which on they are saturated: one a matrix is there by design."""


def stored_formats(matrices: tuple[NamedMatrix, ...], folder: Path) -> dict[NamedMatrix, str]:
    """The format of each matrix as the checkpoint's config has it; empty where it does not say."""
    try:
        rules = rule_set(read_rules_file(folder))
    except StudfinderError:
        return {}
    return {matrix: rules.format_of(matrix) for matrix in matrices}


def how_it_is_stored(made: LM, formats: dict[NamedMatrix, str]) -> tuple[StoredDiagnosis, ...]:
    """What is unlike others of its kind, what is quantised that tools leave alone, and scales that are zero, not finite
    or saturated. A recipe may want the first two: none of it is a fault by itself."""
    folder = made.source.folder
    if not formats or folder is None:
        return ()
    return (*_unlike(formats), *_scales(folder))


def _unlike(formats: dict[NamedMatrix, str]) -> Iterator[StoredDiagnosis]:
    kinds: dict[str, dict[str, str]] = {}
    for matrix, format in formats.items():
        if not matrix.group:
            if format != UNTOUCHED:
                yield StoredDiagnosis(format, matrix.module, "most tools leave it alone")
        else:
            kinds.setdefault(re.sub(r"\.\d+(?=\.|$)", ".*", matrix.module), {})[matrix.module] = format
    for kind, each in kinds.items():
        usual, many = Counter(each.values()).most_common(1)[0]
        for name, format in each.items():
            if format != usual:
                yield StoredDiagnosis(format, name, f"{many} of {len(each)} {kind} are in {usual}")


def _scales(folder: Path) -> Iterator[StoredDiagnosis]:
    from safetensors import safe_open

    for name, held in held_in(folder).items():
        if not _SCALES.search(name) or not held.file.endswith(SAFE):
            continue
        with safe_open(folder / held.file, framework="pt") as file:
            scales = file.get_tensor(name)
        if scales.dtype == torch.uint8:  # powers of two; this one is none
            counts = {"not finite": int((scales == 255).sum())}
        else:
            plain = scales.float()
            counts = {"not finite": int((~plain.isfinite()).sum()), "zero": int((plain == 0).sum())}
            if scales.dtype.itemsize == 1:
                full = int((plain >= torch.finfo(scales.dtype).max).sum())
                counts["saturated"] = full if full > _FULL * scales.numel() else 0
        for what, count in counts.items():
            if count:
                yield StoredDiagnosis("scales", name, f"{count:,} of {scales.numel():,} are {what}")

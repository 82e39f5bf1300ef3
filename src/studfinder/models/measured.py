"""The anatomy of a live model, measured once: kept for the same configuration, class, shapes and versions."""

from __future__ import annotations

import gc
import hashlib
import inspect
import json
import sys
from collections.abc import Hashable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pydantic
import torch
import transformers
from torch import nn

from studfinder.errors import StudfinderError, in_a_line, known
from studfinder.models import anatomy, dependence, feeding, mixing, probe, roles, trace, twin
from studfinder.models.anatomy import Anatomy
from studfinder.models.cache import private_folder, private_text
from studfinder.models.probe import probed, structure_of
from studfinder.models.twin import needs_twin, twin_of

_KEPT: dict[str, Anatomy] = {}
_RECORD = pydantic.TypeAdapter(Anatomy)


_LARGE = 50_000_000
"""Numbers of a twin from which it is not left to the collector when it goes."""


def anatomy_of(model: Any) -> Anatomy:
    """The map of a live model; a model whose weights are no numbers in memory is measured through a twin.

    Raises:
        StudfinderError: it has no list of blocks, or cannot be run on token ids.
    """
    key = _key(model)
    found = _KEPT.get(key) or _read(key)
    if found is None:
        # Wherever it is called: without gradients, compiled, where new tensors have no numbers.
        with torch.enable_grad(), torch.compiler.set_stance("force_eager"), torch.device("cpu"):
            found = _measured(model)
        with suppress(OSError, StudfinderError):  # a cache that cannot be written is none
            text = _RECORD.dump_json(found, exclude_defaults=True)
            private_text(_place(key), f"{hashlib.sha256(text).hexdigest()}\n{text.decode()}")
    _KEPT[key] = found
    return found


def _measured(model: Any) -> Anatomy:
    depths = {path: len(part) for path, part in model.named_modules() if isinstance(part, nn.ModuleList)}
    tried: Exception | None = None
    if not needs_twin(model):
        try:
            return _of(model, model)
        except StudfinderError:
            raise
        except Exception as error:  # whatever the model's own code raises
            tried = error
    ways: tuple[dict[str, Any], ...] = ({}, {"words": None}, {"whole": True}, {"words": None, "whole": True})
    for way in ways if tried is None else ():
        try:
            other, structures = twin_of(model, structure_of, **way)
            found = _of(model, other, depths, structures)
            large = sum(one.numel() for one in other.parameters()) > _LARGE
            del other
            if large:
                gc.collect()  # it is full of cycles, and may be as large as all that is in memory of the model
            return found
        except Exception as error:
            tried = error
    assert tried is not None
    if (said := known(tried)) is not None:  # memory that ends is no trait of a model
        raise said from tried
    raise StudfinderError(
        f"{type(model).__name__} cannot be run on token ids alone ({in_a_line(tried)})",
        expected="a decoder that generates text",
    ) from tried


def _of(
    model: Any, run: Any, depths: dict[str, int] | None = None, structures: Mapping[str, Hashable] | None = None
) -> Anatomy:
    """The anatomy of `model` measured on `run`: itself or its twin."""
    blocks, layers, handed = probed(run, int(run.get_input_embeddings().weight.shape[0]), depths)
    axis = None if handed.dim() < 4 else 2 if handed.shape[1] == trace.TOKENS else 0
    streams = 1 if axis is None else handed.shape[axis]
    first = next((writer for layer in layers for writer in layer.writers), None)
    if structures is not None:
        layers = probe.spread(model, blocks, layers, structures)
    config = model.config.get_text_config(decoder=True)
    return Anatomy(
        architecture=model.config.model_type,
        decoder=blocks.rpartition(".")[0],
        layers=layers,
        hidden=handed.shape[-1] * streams,
        intermediate=0 if first is None else first.view(run.get_parameter(first.parameter)).shape[1],
        vocabulary=int(model.get_input_embeddings().weight.shape[0]),
        max_positions=getattr(config, "max_position_embeddings", None),
        streams=streams,
        stream_axis=axis,
    )


def _key(model: Any) -> str:
    """What decides an anatomy: the config, the class and its code, every shape and dtype, and the versions."""
    said = {name: value for name, value in model.config.to_dict().items() if name not in ("_name_or_path", "dtype")}
    shapes = [
        (
            name,
            str(type(module)),
            [(leaf, *one.shape, str(one.dtype)) for leaf, one in module.named_parameters(recurse=False)],
        )
        for name, module in model.named_modules(remove_duplicate=False)
    ]
    first = {module: name for name, module in reversed(list(model.named_modules(remove_duplicate=False)))}
    shared = [
        (name, first[module]) for name, module in model.named_modules(remove_duplicate=False) if first[module] != name
    ]
    versions = [transformers.__version__, torch.__version__, _code(), _file_of(type(model))]
    whole = json.dumps([said, shapes, shared, versions], default=str, sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()[:32]


@cache
def _code() -> str:
    """A hash of the files that measure."""
    files = (anatomy, dependence, feeding, mixing, probe, roles, trace, twin, sys.modules[__name__])
    return hashlib.sha256(b"".join(Path(str(one.__file__)).read_bytes() for one in files)).hexdigest()


def _file_of(kind: type) -> str:
    """A hash of the file that a class is written in; empty where there is none."""
    with suppress(OSError, TypeError):
        return hashlib.sha256(Path(inspect.getfile(kind)).read_bytes()).hexdigest()
    return ""


def _place(key: str) -> Path:
    return private_folder("anatomy") / f"{key}.json"


def _read(key: str) -> Anatomy | None:
    with suppress(OSError, ValueError, StudfinderError):
        checksum, _, text = _place(key).read_bytes().partition(b"\n")
        if hashlib.sha256(text).hexdigest().encode() == checksum:
            return _RECORD.validate_json(text)
    return None

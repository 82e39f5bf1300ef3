"""From a folder or a hub repository to a model, by transformers; what it would pass over is said or refused."""

from __future__ import annotations

import copy
import dataclasses
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from studfinder.errors import StudfinderError, Unavailable, in_a_line, known
from studfinder.hub import hub_failure
from studfinder.models.adapters import refuse_adapter
from studfinder.models.builtin import BUILTINS
from studfinder.models.carried import blocks_as_stored, carry_blocks, narrow_dtype
from studfinder.models.causes import expert_gap, partner_gap
from studfinder.models.classes import auto_class_of, check_type, diffusion
from studfinder.models.converted import in_own_names
from studfinder.models.files import PIPELINE, Held, check_folder, held_in, weights_of
from studfinder.models.judging import judge
from studfinder.models.lm import Source
from studfinder.models.loading import report_of
from studfinder.models.packed import load_plain, taken_out, view_of
from studfinder.models.places import fetched, hub_folder
from studfinder.models.sizes import check_sizes
from studfinder.models.unpacked import unpacked_folder
from studfinder.records.loading import ReadConfig
from studfinder.records.outside import read_json


def check_checkpoint(folder: Path, *, trust_remote_code: bool = False) -> tuple[str, ...]:
    """What `load` refuses of a folder is refused, without its numbers being read; returns what it would list. Raises
    as `without_numbers`."""
    source = Source(str(folder), "a local folder", folder)
    return without_numbers(source, trust_remote_code=trust_remote_code)[1].notes


def without_numbers(source: Source, *, trust_remote_code: bool = False) -> tuple[Any, Source]:
    """The model of a folder on the meta device, each tensor in the dtype that it is loaded in, and its source with what
    `load` lists. For whoever works on the files of a checkpoint and never loads them.

    Raises:
        StudfinderError: as `load`.
    """
    refuse_adapter(source)
    quiet_when_no_terminal()
    return from_pretrained(source, ReadConfig(device_map={"": "meta"}, trust_remote_code=trust_remote_code))


def from_pretrained(
    source: Source, how: ReadConfig, *, carried: bool = False, own_names: bool = False
) -> tuple[Any, Source]:
    """The model of a folder or hub repository, held against its files.

    Args:
        carried, own_names: as in `load`.

    Returns:
        The model, and its source with what is listed and what was allowed.

    Raises:
        StudfinderError: as `load`.
    """
    from transformers import AutoConfig

    where = str(source.folder or source.id)
    held: dict[str, Held] = {}
    listed: list[str] = []
    if source.folder is not None:
        held = check_folder(source.folder, how.allow_pickle)
    snapshot = hub_folder(source, "config.json") if source.folder is None else None
    if snapshot is not None:  # from here on this commit is read, whatever is pushed meanwhile
        source = dataclasses.replace(source, revision=commit_in(snapshot) or source.revision)
    if (folder := source.folder or snapshot) is not None:
        stored = read_json(folder / "config.json")
        check_sizes(source.id, stored, {name: one.shape for name, one in held.items()})
        check_type(source.id, stored, how.trust_remote_code)
    elif (pipeline := hub_folder(source, PIPELINE)) is not None:
        raise diffusion(source.id, read_json(pipeline / PIPELINE).get("_class_name"))
    common: dict[str, Any] = {"revision": source.revision or "main", "trust_remote_code": how.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(where, **common)
        quantised = taken_out(source.id, config)
        auto, config = auto_class_of(source.id, config, how.trust_remote_code)
        options: dict[str, Any] = {
            "dtype": how.dtype,
            "use_safetensors": None if how.allow_pickle else True,
            "output_loading_info": True,
            "ignore_mismatched_sizes": True,  # they are refused by name, below
            **common,
        }
        if how.device_map is not None:
            options["device_map"] = how.device_map
        if how.attention is not None:
            options["attn_implementation"] = how.attention
        with unsaid("modeling_utils", "LOAD REPORT|will NOT tie|seem corrupted"):
            plain = None
            if quantised is not None and own_names:  # mapped, as what is not quantised
                folder = source.folder or fetched(source)
                held = held or held_in(folder)
                _, dtype, view = view_of(source.id, quantised, auto, config, folder, held, **options)
                plain = unpacked_folder(folder, view, dtype)
                listed = [view.note.replace(" in memory", " in files of the cache")]
                where, held = str(plain), held_in(plain)
            if quantised is None or plain is not None:
                carried = carried and how.dtype != "auto" and how.device_map is None
                read, lacking, stored_names = where, {}, partial(_held, source, held)
                if own_names:
                    folder = plain or source.folder or fetched(source)
                    shell, lacking = auto.from_pretrained(
                        where, config=copy.deepcopy(config), **{**options, "device_map": {"": "meta"}}
                    )
                    if (made := in_own_names(folder, shell)) != folder:
                        read, stored_names = str(made), partial(held_in, made)
                        options["dtype"] = shell.config.dtype  # where no config says it, the first tensor does
                        config.__dict__.pop("transformers_weights", None)  # they have other names there
                with blocks_as_stored(stored_names) if carried else nullcontext():
                    model, info = auto.from_pretrained(read, config=config, **options)
                if read != where:  # what its files lack or have besides is judged by the checkpoint itself
                    model.config._name_or_path = model.name_or_path = where
                    model._weight_conversions = shell._weight_conversions  # it is saved as ever, experts apart
                    info = {kind: {*found, *lacking[kind]} for kind, found in info.items()}
                if plain is not None:
                    model.config._name_or_path = model.name_or_path = str(source.folder or source.id)
                if carried:
                    carry_blocks(model, how.dtype)
            else:
                folder = source.folder or fetched(source)
                held = held or held_in(folder)
                model, info, view = load_plain(source.id, quantised, auto, config, folder, held, **options)
                held, listed = view.held, [view.note]
    except StudfinderError:
        raise
    except Exception as error:  # transformers raises many kinds; the user needs one line
        if source.folder is None and (failed := hub_failure(source.id, error, source.revision)) is not None:
            raise failed from error
        if (said := known(error)) is not None and getattr(error, "filename", None) is None:
            raise said from error
        if (gap := expert_gap(source.id, held) or partner_gap(source.id, held)) is not None:
            raise gap from error
        kind = Unavailable if isinstance(error, ImportError) else StudfinderError
        why = "Is the id right, is there network, and is the model public (or HF_TOKEN set)? Built in: "
        advice = None if source.folder is not None else why + ", ".join(BUILTINS)
        raise kind(f"cannot load {source.id} ({in_a_line(error)})", do=advice) from error
    if snapshot is not None and quantised is None:
        held = held_in(snapshot)
    index = weights_of(folder).where if folder is not None and quantised is None else {}
    report = report_of(model, info, held, index, asked=how.dtype != "auto")
    found = judge(source.id, report)
    for refused in found.refused if how.allow_missing else (*found.absent, *found.refused):
        raise refused
    done = (one.what.replace("and would be random", "but random").replace("would be", "are") for one in found.absent)
    allowed = tuple(f"allowed: {what}" for what in done)
    method = None if quantised is None else str(quantised["quant_method"])
    notes = (*listed, *found.listed)
    stored = narrow_dtype(held, how.dtype) if how.dtype != "auto" and quantised is None else None
    return model, dataclasses.replace(source, notes=notes, allowed=allowed, quantised=method, stored=stored)


def _held(source: Source, held: dict[str, Held]) -> dict[str, Held]:
    """What the files hold, those of the hub once they are here."""
    folder = None if held else hub_folder(source, "config.json")
    return held if folder is None else held_in(folder)


def commit_in(folder: Path) -> str | None:
    """The commit that a folder of the hub's cache is of; None for any other folder."""
    kept = folder.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", folder.name)
    return folder.name if kept else None


@contextmanager
def unsaid(by: str, words: str) -> Iterator[None]:
    """Keep a module of transformers from printing what is said in a line of ours: its records that match `words`."""

    def said_here(record: logging.LogRecord) -> bool:
        return not re.search(words, record.getMessage())

    logger = logging.getLogger(f"transformers.{by}")
    logger.addFilter(said_here)
    try:
        yield
    finally:
        logger.removeFilter(said_here)


def quiet_when_no_terminal() -> None:
    """No progress bars of transformers in a log."""
    if not sys.stderr.isatty():
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()

"""A model from its config alone, without numbers, beside the names of the tensors in its files."""

from __future__ import annotations

from typing import Any

from studfinder.errors import StudfinderError, in_a_line
from studfinder.models.classes import auto_class_of, check_type
from studfinder.models.files import held_in
from studfinder.models.lm import Source
from studfinder.models.packed import taken_out
from studfinder.models.places import hub_folder
from studfinder.models.pretrained import quiet_when_no_terminal
from studfinder.records.outside import read_json

_INDEX = "model.safetensors.index.json"


def shell_of(source: Source, *, trust_remote_code: bool = False) -> tuple[Any, tuple[str, ...]]:
    """The model of a config.json on the meta device, as it would be if it were not quantised, and the names of its
    files' tensors: from the index, or from the headers where there is none. No weight is read, nor need it be there.

    Raises:
        StudfinderError: there is no config.json, or it is none of a language model.
    """
    import torch
    from transformers import AutoConfig

    quiet_when_no_terminal()
    folder = source.folder or hub_folder(source, "config.json", _INDEX)
    if folder is None or not (folder / "config.json").is_file():
        raise StudfinderError(f"{source.id} has no config.json", expected="a model's folder or hub id")
    check_type(source.id, read_json(folder / "config.json"), trust_remote_code)
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
        taken_out(source.id, config)
        auto, config = auto_class_of(source.id, config, trust_remote_code)
        with torch.device("meta"):
            model = auto.from_config(config, trust_remote_code=trust_remote_code)
    except StudfinderError:
        raise
    except Exception as error:  # transformers raises many kinds; the user needs one line
        raise StudfinderError(f"{source.id} cannot be built from its config.json ({in_a_line(error)})") from error
    return model.eval(), _names(folder)


def _names(folder: Any) -> tuple[str, ...]:
    if (folder / _INDEX).is_file():
        where = read_json(folder / _INDEX).get("weight_map")
        if not isinstance(where, dict):
            raise StudfinderError(f"{folder / _INDEX} has no weight_map", expected="an index of shards")
        return tuple(where)
    return tuple(held_in(folder)) if (folder / "model.safetensors").is_file() else ()

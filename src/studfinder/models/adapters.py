"""Adapters (LoRA and its kin): merged into their base model when that is asked for, never dropped."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from studfinder.errors import StudfinderError, Unavailable, in_a_line
from studfinder.models.files import ADAPTER, check_names, pickle_refused, read_pickle, some
from studfinder.models.headers import read_header
from studfinder.models.inside import inside, leads_in, linked
from studfinder.models.lm import Source
from studfinder.models.places import hub_folder
from studfinder.records.outside import read_json

_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk.

    Attributes:
        folder: where it is.
        kind: peft's name of it, e.g. "LORA".
        base: the model that it changes; None where its folder holds a whole model as well.
        revision: of the base model's repository, where the adapter says so.
        words: what it is, for print.
    """

    folder: Path
    kind: str
    base: str | None
    words: str
    revision: str | None = None


def adapter_at(source: Source) -> Adapter | None:
    """The adapter in a folder or hub repository, if there is one.

    Raises:
        StudfinderError: its config cannot be read, or names no base model.
    """
    # What else is asked for comes into the same folder of the hub's cache.
    folder = source.folder or hub_folder(source, ADAPTER, "config.json", *_WEIGHTS)
    if folder is None or not (folder / ADAPTER).is_file():
        return None
    check_names(folder)
    config = read_json(folder / ADAPTER)
    kind, base = str(config.get("peft_type", "unknown")), config.get("base_model_name_or_path")
    if config.get("adapters"):
        raise StudfinderError(f"{folder / ADAPTER} names further adapters", expected="one that stands for itself")
    if (folder / "config.json").is_file():
        return Adapter(folder, kind, None, f"a whole model with an adapter ({kind}) beside it")
    if not base:
        raise StudfinderError(f"{folder / ADAPTER} names no base model", expected="base_model_name_or_path")
    revision = config.get("revision")
    pinned = revision if isinstance(revision, str) and revision else None
    return Adapter(folder, kind, str(base), f"an adapter ({kind}) of {base}", pinned)


def refuse_adapter(source: Source) -> None:
    """Raise StudfinderError if the folder or hub repository holds an adapter."""
    adapter = adapter_at(source)
    if adapter is not None:
        other = ", or delete its adapter_config.json" if adapter.base is None else f", or load {adapter.base}"
        raise StudfinderError(
            f"{source.id} is {adapter.words}",
            expected="a whole model",
            do=f"Merge it with --merge-adapter (merge_adapter=True){other}",
        )


@contextmanager
def without_adapter(folder: Path) -> Iterator[Path]:
    """The folder as it would be without its adapter, which transformers would put on the model by itself."""
    found = (path for path in folder.iterdir() if not path.name.startswith("adapter_"))
    names = [path.name for path in found if not path.is_dir() or leads_in(folder, path)]
    with linked(folder, names) as made:
        yield made


def merged(model: Any, adapter: Adapter, allow_pickle: bool) -> Any:
    """The model with the adapter added to its weights, in its own dtype; a plain model of the same class.

    Raises:
        Unavailable: peft is not installed.
        StudfinderError: the adapter's files and what peft took of them differ, or it cannot be merged.
    """
    try:
        import peft
    except ImportError:
        raise Unavailable(
            f"{adapter.folder} is an adapter, and merging it needs peft", do="pip install 'studfinder[adapters]'"
        ) from None
    names, numbers = set(model.state_dict()), model.num_parameters()
    held = _held(adapter.folder, allow_pickle)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is missing is refused below
            wrapped = peft.PeftModel.from_pretrained(model, str(adapter.folder))
            taken = peft.get_peft_model_state_dict(wrapped)
    except Exception as error:  # peft and torch raise many kinds; the user needs one line
        raise StudfinderError(f"adapter {adapter.folder} does not fit its base model ({in_a_line(error)})") from error
    for what, gone in (("lacks", set(taken) - set(held)), ("holds, without a place for them,", set(held) - set(taken))):
        if gone:
            raise StudfinderError(
                f"adapter {adapter.folder} {what} {some(gone)}",
                expected="the tensors that its adapter_config.json asks for",
                do="It may be of another base model: load it with the one it was trained on",
            )
    for name, tensor in taken.items():
        if not torch.equal(tensor.cpu(), held[name].to(tensor.dtype)):
            raise StudfinderError(f"adapter tensor {name} of {adapter.folder} was not taken as it is in the file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain = wrapped.merge_and_unload(safe_merge=True)
    except Exception as error:
        raise StudfinderError(f"adapter {adapter.folder} cannot be merged ({adapter.kind}: {error})") from error
    if set(plain.state_dict()) != names or plain.num_parameters() != numbers:
        raise StudfinderError(
            f"adapter {adapter.folder} ({adapter.kind}) leaves more than weights behind when it is merged",
            expected="a kind that merges whole, e.g. LORA",
        )
    for parameter in plain.parameters():
        parameter.requires_grad_(True)  # as any model that was just loaded
    if hasattr(plain, "peft_config"):
        del plain.peft_config  # or saving the model would save an adapter
    return plain


def _held(folder: Path, allow_pickle: bool) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    safe, pickled = (inside(folder, name) for name in _WEIGHTS)
    if safe.is_file():
        read_header(safe)
        return load_file(safe)
    if not pickled.is_file():
        raise StudfinderError(f"{folder} holds {ADAPTER} but no adapter weights", expected=safe.name)
    if not allow_pickle:
        raise pickle_refused(f"{folder} holds only a pickled adapter, which can run code as it loads", safe.name)
    return read_pickle(pickled)

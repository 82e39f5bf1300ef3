"""What transformers said of a load, and what the files' headers say: what `judge` needs to know, as plain data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from studfinder.errors import StudfinderError
from studfinder.models.files import Held


@dataclass(frozen=True)
class Slot:
    """A tensor of the model: its dtype's name ("float32"), its size, and what it shares with the tensors tied to it."""

    dtype: str
    numel: int
    storage: int
    constant: bool = False


@dataclass(frozen=True)
class Report:
    """What the files hold, and what the model took.

    Attributes:
        held: the files' headers; empty where they cannot be read, and then only transformers' word is judged.
        slots: every parameter and saved buffer.
        renamed: the slot of each tensor of the files that transformers loads under another name, as it is.
        stale: what an index names and no shard holds: by its name, the shard that it should be in.
        missing, unexpected, mismatched: transformers' loading info; mismatched are (name, held, wanted).
        passed_over, filled: patterns of names that transformers' class ignores by name, unexpected and missing.
        prefix: the base model's attribute, which transformers adds to a name or takes away.
        layers: how many blocks the config says.
        architecture: the class that the config names; the model's own where it names none.
        asked: whether the caller chose the dtype; otherwise a cast is listed.
        untied: the config ties the embedding and the head, and yet they are two tensors.
    """

    held: Mapping[str, Held]
    slots: Mapping[str, Slot]
    renamed: Mapping[str, str] = field(default_factory=dict)
    stale: Mapping[str, str] = field(default_factory=dict)
    missing: frozenset[str] = frozenset()
    unexpected: frozenset[str] = frozenset()
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    passed_over: tuple[str, ...] = ()
    filled: tuple[str, ...] = ()
    prefix: str = ""
    layers: int | None = None
    architecture: str = ""
    asked: bool = False
    untied: bool = False


@dataclass
class Judgement:
    """Why a load is refused (the first says most), what may pass on request, and what is only listed.

    Attributes:
        refused: never allowed: numbers in memory are not those that the files mean.
        absent: tensors that are random or left out; `allow_missing` lets them pass.
        listed: what is not in memory and need not be, in words.
    """

    refused: list[StudfinderError] = field(default_factory=list)
    absent: list[StudfinderError] = field(default_factory=list)
    listed: list[str] = field(default_factory=list)


def destinations(model: Any, names: Iterable[str]) -> dict[str, tuple[str, tuple[Any, str] | None]]:
    """The tensor of a model that each tensor of its files goes into, by transformers' own renaming; and, where it is
    converted on the way (stacked with others, say), the WeightConverter and the pattern of it that fits the name. What
    a converter makes several tensors of has the first of them. Experts are in the order of their numbers."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(model, hf_quantizer=getattr(model, "hf_quantizer", None))
    renamings = [step for step in mapping if not isinstance(step, WeightConverter)]
    converters = [step for step in mapping if isinstance(step, WeightConverter)]
    by_pattern = {pattern: step for step in converters for pattern in step.source_patterns}
    prefix, state = model.base_model_prefix, model.state_dict()
    found = {}
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:  # it is the model's own name, which happens to fit a pattern
            target, pattern = rename_source_key(name, [], [], prefix, state)
        found[name] = target, None if pattern is None else (by_pattern[pattern], pattern)
    return found


def report_of(
    model: Any, info: Mapping[str, Any], held: Mapping[str, Held], index: Mapping[str, str], *, asked: bool
) -> Report:
    """The report of a model that was just loaded; `info` is what `output_loading_info` returns, `index` the file of
    each tensor where an index says it, the rest `Report`'s."""
    state = model.state_dict(keep_vars=True)
    filled = tuple(getattr(model, "_keys_to_ignore_on_load_missing", None) or ())
    config = model.config.get_text_config(decoder=True)
    known = ["rotary_emb.inv_freq", "position_ids"]  # transformers adds these two to its classes' patterns
    own = [re.escape(name) for name in known if any(buffer.endswith(name) for buffer, _ in model.named_buffers())]
    named = getattr(model.config, "architectures", None)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    two = head is not None and embedding is not None and head.weight is not embedding.weight
    alike = two and head.weight.shape == embedding.weight.shape  # rows of the embedding may be more than words
    into = destinations(model, (name for name in {**held, **index} if name not in state))
    return Report(
        held=held,
        slots={
            name: Slot(
                str(tensor.dtype).removeprefix("torch."),
                tensor.numel(),
                id(tensor),
                any(re.search(pattern, name) for pattern in filled)
                and tensor.device.type != "meta"
                and bool((tensor == tensor.flatten()[:1]).all()),
            )
            for name, tensor in state.items()
        },
        renamed={name: target for name, (target, converted) in into.items() if target in state and not converted},
        stale={name: file for name, file in index.items() if name not in held} if held else {},
        missing=frozenset(info["missing_keys"]),
        unexpected=frozenset(info["unexpected_keys"]),
        mismatched=tuple((name, tuple(a), tuple(b)) for name, a, b in sorted(info["mismatched_keys"])),
        passed_over=(*(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()), *own),
        filled=filled,
        prefix=model.base_model_prefix or "",
        layers=getattr(config, "num_hidden_layers", None),
        architecture=str(named[0]) if isinstance(named, list) and named else type(model).__name__,
        asked=asked,
        untied=bool(getattr(model.config, "tie_word_embeddings", False)) and alike,
    )

"""What was loaded is what the checkpoint holds: transformers' loading info held against the files' own headers.

transformers fills a tensor that it does not find with random numbers, passes over one that it has no place for, casts
integers to floats and lets the later of two copies win; it says so in a log that nobody reads, or not at all. `judge`
is told what the files hold and what the model took, and says what of it is refused, what is listed, and why.

What headers cannot show: a square matrix stored transposed, and numbers that are simply others. Of experts that a model
fuses only the count and the numbering are seen.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from studfinder.errors import StudfinderError
from studfinder.models.files import FLOATS, Held, some

_CACHE_SCALE = re.compile(r"(^|\.)((k|v|q|kv)_scale|kv_cache_scale|prob_output_scale|[kv]_proj\.output_scale)$")
_TOWER = re.compile(
    r"(^|\.)(vision_\w+|visual|image_\w+|img_\w+|multi_modal_projector|mm_projector|audio_\w+|speech_\w+|embed_vision|"
    r"embed_audio|talker|code2wav)(\.|$)"
)
_AHEAD = re.compile(r"(^|[._])(mtp|nextn|eh_proj|enorm|hnorm|shared_head)([._]|$)")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_QUANTISER = re.compile(
    r"scale|qweight|zeros|zero_point|absmax|quant_map|quant_state|g_idx|packed|_blocks$|\.SCB$|weight_shape|codebook|amax"
)
_ADAPTER = re.compile(r"\.(lora_\w+|base_layer|modules_to_save)(\.|$)")
_EXPERT = re.compile(r"(?<=\.)(\d+)(?=\.)")


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
        missing, unexpected, mismatched: transformers' loading info; mismatched are (name, held, wanted).
        passed_over, filled: patterns of names that transformers' class ignores by name, unexpected and missing.
        prefix: the base model's attribute, which transformers adds to a name or takes away.
        layers: how many blocks the config says.
        quantiser: the config's quantisation method; `decoded` whether transformers knew what to do with it.
        architecture: the class that the config names.
        asked: whether the caller chose the dtype; otherwise a cast is listed.
        untied: the config ties the embedding and the head, and yet they are two tensors.
    """

    held: Mapping[str, Held]
    slots: Mapping[str, Slot]
    missing: frozenset[str] = frozenset()
    unexpected: frozenset[str] = frozenset()
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    passed_over: tuple[str, ...] = ()
    filled: tuple[str, ...] = ()
    prefix: str = ""
    layers: int | None = None
    quantiser: str | None = None
    decoded: bool = False
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


def report_of(
    model: Any,
    info: Mapping[str, Any],
    held: Mapping[str, Held],
    *,
    quantiser: str | None,
    decoded: bool,
    asked: bool,
) -> Report:
    """The report of a model that was just loaded: `info` is what `output_loading_info` returns; the rest is `Report`'s."""
    state = model.state_dict(keep_vars=True)
    filled = tuple(getattr(model, "_keys_to_ignore_on_load_missing", None) or ())
    config = model.config.get_text_config(decoder=True)
    known = ["rotary_emb.inv_freq", "position_ids"]  # transformers adds these two to its classes' patterns
    own = [re.escape(name) for name in known if any(buffer.endswith(name) for buffer, _ in model.named_buffers())]
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
        missing=frozenset(info["missing_keys"]),
        unexpected=frozenset(info["unexpected_keys"]),
        mismatched=tuple((name, tuple(a), tuple(b)) for name, a, b in sorted(info["mismatched_keys"])),
        passed_over=(*(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()), *own),
        filled=filled,
        prefix=model.base_model_prefix or "",
        layers=getattr(config, "num_hidden_layers", None),
        quantiser=quantiser,
        decoded=decoded,
        architecture=(getattr(model.config, "architectures", None) or [type(model).__name__])[0],
        asked=asked,
        untied=bool(getattr(model.config, "tie_word_embeddings", False)) and _two(model),
    )


def _two(model: Any) -> bool:
    """Whether embedding and head are two tensors."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and embedding is not None and head.weight is not embedding.weight


def judge(source: str, said: Report) -> Judgement:
    """What is refused of a load, what may pass on request, and what is listed. `source` names the model in the words."""
    result = Judgement()
    targets = {name: _target(name, said) for name in said.held}
    leftover = _listed(said, targets, result)
    _judge_absent(source, said, targets, leftover, result)
    _judge_twice(source, said, targets, result)
    if not said.decoded:
        _judge_dtypes(source, said, targets, result)
        if not result.absent and not result.refused:
            _judge_sizes(source, said, targets, result)
    return result


def _target(name: str, said: Report) -> str | None:
    """The tensor of the model that a tensor of the files goes to by its name; None if it is converted on the way."""
    start = f"{said.prefix}."
    for candidate in (name, name.removeprefix(start), start + name):
        if candidate in said.slots:
            return candidate
    return None


def _listed(said: Report, targets: Mapping[str, str | None], result: Judgement) -> frozenset[str]:
    """List what need not be in memory; returns what else is left over."""
    homeless = [name for name, target in targets.items() if target is None]
    by_name = [name for name in homeless if any(re.search(pattern, name) for pattern in said.passed_over)]
    ahead = _ahead(said.unexpected, said.layers)
    rest = said.unexpected - set(by_name)
    kinds = {
        "which transformers passes over for this class": by_name,
        "scales of a key-value cache, which is not quantised here": [n for n in rest if _CACHE_SCALE.search(n)],
        "towers of other modalities": [n for n in rest if _TOWER.search(n)],
        "multi-token prediction heads past the last layer": [n for n in rest if n in ahead],
    }
    seen: set[str] = set()
    for words, names in kinds.items():
        new = set(names) - seen
        seen |= new
        if new:
            result.listed.append(f"not loaded, {words}: {_count(new)}: {some(new)}")
    defaults = [n for n in said.slots if n not in targets.values() and any(re.search(p, n) for p in said.filled)]
    constant = [name for name in defaults if said.slots[name].constant]
    if said.untied:
        result.listed.append("config.json ties the head to the embedding, but the files hold two that differ: both are used")
    if constant and said.held:
        result.listed.append(f"not in the files, at their class's default: {_count(constant)}: {some(constant)}")
    return frozenset(rest - seen)


def _ahead(names: Iterable[str], layers: int | None) -> set[str]:
    """Tensors that predict more than the next token: named so, or in a layer past the last that holds one named so."""
    past: dict[int, list[str]] = {}
    for name in names:
        found = _LAYER.search(name)
        if found and layers is not None and int(found[1]) >= layers:
            past.setdefault(int(found[1]), []).append(name)
    whole = {name for group in past.values() if any(map(_AHEAD.search, group)) for name in group}
    return whole | {name for name in names if re.search(r"(^|\.)(mtp|nextn)[._]", name)}


def _judge_absent(
    source: str, said: Report, targets: Mapping[str, str | None], leftover: frozenset[str], result: Judgement
) -> None:
    wrong = {name for name, _, _ in said.mismatched}
    there = {said.slots[name].storage for name in said.slots if name not in said.missing | wrong}
    missing = {n for n in said.missing - wrong if n not in said.slots or said.slots[n].storage not in there}
    if said.held:  # what a class ignores by name when it is missing is random unless it starts as a constant
        reached = set(targets.values())
        missing |= {
            name
            for name, slot in said.slots.items()
            if name not in reached and not slot.constant and any(re.search(p, name) for p in said.filled)
        }
    scales = {name for name in leftover if _QUANTISER.search(name)}
    if scales:
        result.absent.append(
            StudfinderError(
                f"{source} holds {_count(scales)} of a quantiser that nothing reads ({some(scales)}), so its weights "
                "would be off by their scales",
                expected="a quantization_config in config.json that says what they are"
                if said.quantiser is None
                else f"a quantisation method that transformers knows, not {said.quantiser!r}",
                do="Add the quantization_config that belongs to these weights, or load the model they were made from"
                if said.quantiser is None
                else f"Install the package that reads {said.quantiser!r}, or load the unquantised model",
            )
        )
    if missing:
        held = f"; the files hold instead {some(leftover)}" if leftover else ""
        result.absent.append(
            StudfinderError(
                f"{len(missing):,} of {len(said.slots):,} tensors are not in {source} and would be random "
                f"({some(missing)}){held}",
                expected="every tensor of the model",
                do=_cause(said, missing, leftover),
            )
        )
    for name, held, wanted in said.mismatched[:1]:
        others = f" (and {len(said.mismatched) - 1:,} more)" if len(said.mismatched) > 1 else ""
        turned = held[::-1] == wanted and len(held) > 1
        result.absent.append(
            StudfinderError(
                f"tensor {name} of {source} is {_shape(held)}, but the model wants {_shape(wanted)}{others}",
                expected="the sizes in config.json",
                do="It is stored transposed: transpose it" if turned else "config.json or the weights are another model's",
            )
        )
    others = leftover - scales
    if others and not missing:
        result.absent.append(
            StudfinderError(
                f"the model has no place for {_count(others)} that {source} holds ({some(others)})",
                expected="a checkpoint of this class",
                do=_cause(said, missing, leftover),
            )
        )


def _cause(said: Report, missing: Iterable[str], leftover: Iterable[str]) -> str:
    """The likely cause, as what to do."""
    missing, leftover = set(missing), set(leftover)
    if any(_ADAPTER.search(name) for name in leftover):
        return "An adapter is mixed into the weights: merge it (peft's merge_and_unload) and save the model again"
    prefix = _prefix(missing, leftover)
    if prefix:
        return f"Strip the prefix {prefix!r} from the names of its tensors"
    suffix = _prefix(leftover, missing)
    if suffix:
        return f"Put the prefix {suffix!r} before the names of its tensors"
    past = [int(found[1]) for found in map(_LAYER.search, leftover) if found]
    if not missing and past and said.layers is not None and max(past) >= said.layers:
        return f"config.json says {said.layers} layers, the files hold {max(past) + 1}: one of them is another model's"
    if said.quantiser is not None and not said.decoded:
        return f"transformers does not know the quantisation method {said.quantiser!r}: load the unquantised model"
    if any(re.search(r"(^|\.)(score|v_head|classifier|regression_head|value_head)\.", name) for name in leftover):
        return f"It is a reward or classification model ({said.architecture}), which has no language-model head"
    if missing and all("head" in name or "embed_out" in name for name in missing):
        return (
            f"Its head is lost, or it is an embedding or headless model (config.json says {said.architecture}): load the "
            "causal model it was made from"
        )
    return "Download or save it again; --allow-missing loads it as it is, and the record says so"


def _prefix(wanted: set[str], found: set[str]) -> str | None:
    """What most of the names found have in front of a name that is wanted, with its dot."""
    counted: Counter[str] = Counter()
    for name in found:
        parts = name.split(".")
        for cut in range(1, len(parts)):
            if ".".join(parts[cut:]) in wanted:
                counted[".".join(parts[:cut]) + "."] += 1
                break
    best = counted.most_common(1)
    return best[0][0] if best else None


def _judge_twice(source: str, said: Report, targets: Mapping[str, str | None], result: Judgement) -> None:
    first: dict[str, str] = {}
    for name, target in targets.items():
        if target is None:
            continue
        if target in first:
            result.refused.append(
                StudfinderError(
                    f"{source} holds tensor {target} under two names, {first[target]} and {name}",
                    expected="one of the two",
                    do="Delete the one that is left over",
                )
            )
            return
        first[target] = name


def _judge_dtypes(source: str, said: Report, targets: Mapping[str, str | None], result: Judgement) -> None:
    """Integers and fp8 that would be cast to weights are refused; floats of another dtype are listed."""
    bad, cast = {}, Counter[tuple[str, str]]()
    usual = Counter(slot.dtype for slot in said.slots.values()).most_common(1)[0][0] if said.slots else "float32"
    for name, target in targets.items():
        if target is None and (name in said.unexpected or any(re.search(p, name) for p in said.passed_over)):
            continue
        stored, slot = said.held[name].dtype, said.slots[target] if target is not None else None
        wanted = slot.dtype if slot is not None else usual
        if (stored in FLOATS) != ("float" in wanted and "float8" not in wanted):
            bad[name] = stored
        elif stored in FLOATS and str(FLOATS[stored]) != f"torch.{wanted}":
            cast[stored, wanted] += 1
    if bad:  # scales without weights, or weights without scales
        kinds = " and ".join(sorted(set(bad.values())))
        result.refused.append(
            StudfinderError(
                f"{_count(bad)} of {source} would be cast from {kinds} to float without a scale ({some(bad)})",
                expected="floats, or a quantization_config in config.json that says how to decode them",
                do="Load the model it was made from, or add the quantization_config and the scales that belong to it",
            )
        )
    if not said.asked:
        result.listed += [f"stored as {a} and cast to {b}: {n:,} tensors" for (a, b), n in sorted(cast.items())]


def _judge_sizes(source: str, said: Report, targets: Mapping[str, str | None], result: Judgement) -> None:
    """What is converted on the way in: as many numbers go in as come out, and experts are numbered without a gap."""
    converted = [
        name
        for name, target in targets.items()
        if target is None
        and name not in said.unexpected
        and not any(re.search(pattern, name) for pattern in (*said.passed_over, _CACHE_SCALE, _TOWER, _AHEAD))
    ]
    reached = {said.slots[target].storage for target in targets.values() if target is not None}
    rest = {slot.storage: slot.numel for name, slot in said.slots.items() if slot.storage not in reached}
    for name, slot in said.slots.items():
        if name not in targets.values() and slot.constant:
            rest.pop(slot.storage, None)
    held, wanted = sum(math.prod(said.held[name].shape) for name in converted), sum(rest.values())
    if said.held and held != wanted:
        result.refused.append(
            StudfinderError(
                f"{source} holds {held:,} numbers ({some(converted)}) for tensors of {wanted:,}",
                expected="each number once",
                do="A tensor is there twice, or under an older name as well: delete what is left over",
            )
        )
    gap = expert_gap(source, converted)
    if gap is not None:
        result.refused.append(gap)


def partner_gap(source: str, names: Iterable[str]) -> StudfinderError | None:
    """The first module that lacks a tensor which the same module of other layers has, beside another that it has."""
    modules: dict[str, dict[str, set[str]]] = {}
    for name in names:
        module, _, leaf = name.rpartition(".")
        modules.setdefault(re.sub(r"\d+", "#", module), {}).setdefault(module, set()).add(leaf)
    for alike in modules.values():
        every = set().union(*alike.values())
        for module, leaves in sorted(alike.items()):
            if gone := every - leaves:
                return StudfinderError(
                    f"{source} holds {module}.{min(leaves)} but no {module}.{min(gone)}",
                    expected="every tensor of the model",
                    do="Download or save it again",
                )
    return None


def expert_gap(source: str, names: Iterable[str]) -> StudfinderError | None:
    """The first expert that is missing among tensors of experts, which a model stacks in the order of their numbers."""
    numbers: dict[str, dict[str, set[int]]] = {}
    for name in names:
        found = list(_EXPERT.finditer(name))
        if len(found) > 1:  # the layer's number and the expert's
            last = found[-1]
            kinds = numbers.setdefault(name[: last.start()], {})
            kinds.setdefault(name[last.end() :], set()).add(int(last[0]))
    for before, kinds in sorted(numbers.items()):
        most = max(max(group) for group in kinds.values())
        for after, group in sorted(kinds.items()):
            if gaps := set(range(most + 1)) - group:
                return StudfinderError(
                    f"{source} holds experts to {before}{most} but no {before}{min(gaps)}{after}",
                    expected="experts numbered from 0 without a gap",
                    do="They would take each other's places: download or save it again",
                )
    return None


def _count(names: Any) -> str:
    return f"{len(names):,} tensor{'' if len(names) == 1 else 's'}"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"

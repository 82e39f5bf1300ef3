"""Why tensors are missing or left over, as far as their names show it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from studfinder.errors import StudfinderError
from studfinder.models.loading import Report

LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_ADAPTER = re.compile(r"\.(lora_\w+|base_layer|modules_to_save)(\.|$)")
_TEXT_PART = re.compile(r"(^|\.)(language_model|text_model)\.")
_EXPERT = re.compile(r"(?<=\.)(\d+)(?=\.)")


def cause(said: Report, missing: Iterable[str], leftover: Iterable[str]) -> str:
    """The likely cause, as what to do."""
    missing, leftover = set(missing), set(leftover)
    if any(_ADAPTER.search(name) for name in leftover):
        return "An adapter is mixed into the weights: merge it (peft's merge_and_unload) and save the model again"
    parts = [bool(_TEXT_PART.search(name)) for name in said.unexpected]
    if missing and any(parts) and not all(parts):
        return (
            f"The weights are a whole image-text or omni model's, and config.json ({said.architecture}) is of its text "
            "part alone: put the whole model's config.json there"
        )
    prefix = _prefix(missing, leftover)
    if prefix:
        return f"Strip the prefix {prefix!r} from the names of its tensors"
    suffix = _prefix(leftover, missing)
    if suffix:
        return f"Put the prefix {suffix!r} before the names of its tensors"
    past = [int(found[1]) for found in map(LAYER.search, leftover) if found]
    if not missing and past and said.layers is not None and max(past) >= said.layers:
        return f"config.json says {said.layers} layers, the files hold {max(past) + 1}: one of them is another model's"
    if any(re.search(r"(^|\.)(score|v_head|classifier|regression_head|value_head)\.", name) for name in leftover):
        return f"It is a reward or classification model ({said.architecture}), which has no language-model head"
    if missing and all("head" in name or "embed_out" in name for name in missing):
        return (
            f"Its head is lost, or it is an embedding or headless model (config.json says {said.architecture}): "
            "load the causal model it was made from"
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
        if found and "expert" in name[: found[-1].start()]:
            last = found[-1]
            kinds = numbers.setdefault(name[: last.start()], {})
            kinds.setdefault(name[last.end() :], set()).add(int(last[0]))
    for before, kinds in sorted(numbers.items()):
        for after, group in sorted(kinds.items()):
            most = max(group)  # kinds may differ: experts that pass their input on have some tensors and not others
            if gaps := set(range(most + 1)) - group:
                return StudfinderError(
                    f"{source} holds experts to {before}{most} but no {before}{min(gaps)}{after}",
                    expected="experts numbered from 0 without a gap",
                    do="They would take each other's places: download or save it again",
                )
    return None

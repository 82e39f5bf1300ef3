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
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from studfinder.errors import StudfinderError
from studfinder.models.causes import LAYER, cause, expert_gap
from studfinder.models.files import FLOATS, some
from studfinder.models.loading import Judgement, Report

_CACHE_SCALE = re.compile(r"(^|\.)((k|v|q|kv)_scale|kv_cache_scale|prob_output_scale|[kv]_proj\.output_scale)$")
_TOWER = re.compile(
    r"(^|\.)(vision_\w+|visual|image_\w+|img_\w+|multi_modal_projector|mm_projector|audio_\w+|speech_\w+|embed_vision|"
    r"embed_audio|talker|code2wav|token2wav)(\.|$)"
)
_AHEAD = re.compile(r"(^|[._])(mtp|nextn|eh_proj|enorm|hnorm|shared_head)([._]|$)")
_NEED_NOT_BE = [_CACHE_SCALE.pattern, _TOWER.pattern, _AHEAD.pattern]
_QUANTISER = re.compile(
    r"scale|qweight|zeros|zero_point|absmax|quant_map|quant_state|g_idx|packed|_blocks$|\.SCB$|weight_shape|codebook|amax"
)

_Targets = Mapping[str, str | None]
"""The tensor of the model that each tensor of the files goes to."""


def judge(source: str, said: Report) -> Judgement:
    """What is refused of a load, what may pass on request, and what is listed. `source`: the model's name in print."""
    targets = {name: _target(name, said) for name in said.held}
    listed, leftover = _listed(said, targets)
    result = Judgement(absent=list(_absent(source, said, targets, leftover)), listed=listed)
    result.refused += _twice(source, targets)
    result.refused += _cast(source, said, targets, listed)
    if not result.absent and not result.refused:
        result.refused += _sizes(source, said, targets)
    return result


def _target(name: str, said: Report) -> str | None:
    """The tensor of the model that a tensor of the files goes to by its name; None if it is converted on the way."""
    start = f"{said.prefix}."
    for candidate in (name, name.removeprefix(start), start + name):
        if candidate in said.slots:
            return candidate
    return said.renamed.get(name)


def _listed(said: Report, targets: _Targets) -> tuple[list[str], frozenset[str]]:
    """What is left over and need not be in memory, in words; and what else is left over."""
    listed = []
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
            listed.append(f"not loaded, {words}: {_count(new)}: {some(new)}")
    if said.stale:
        listed.append(f"named in its index and held by no shard: {_count(said.stale)}: {some(said.stale)}")
    defaults = [n for n in said.slots if n not in targets.values() and any(re.search(p, n) for p in said.filled)]
    constant = [name for name in defaults if said.slots[name].constant]
    if said.untied:
        listed.append("config.json ties head and embedding, but the files hold two that differ: both are used")
    if constant and said.held:
        listed.append(f"not in the files, at their class's default: {_count(constant)}: {some(constant)}")
    return listed, frozenset(rest - seen)


def _ahead(names: Iterable[str], layers: int | None) -> set[str]:
    """Tensors that predict more than the next token: named so, or in a layer past the last that holds one named so."""
    past: dict[int, list[str]] = {}
    for name in names:
        found = LAYER.search(name)
        if found and layers is not None and int(found[1]) >= layers:
            past.setdefault(int(found[1]), []).append(name)
    whole = {name for group in past.values() if any(map(_AHEAD.search, group)) for name in group}
    return whole | {name for name in names if re.search(r"(^|\.)(mtp|nextn)[._]", name)}


def _absent(source: str, said: Report, targets: _Targets, leftover: frozenset[str]) -> Iterator[StudfinderError]:
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
        yield StudfinderError(
            f"{source} holds {_count(scales)} of a quantiser that nothing reads ({some(scales)}), so its weights "
            "would be off by their scales",
            expected="a quantization_config in config.json that says what they are",
            do="Add the quantization_config that belongs to these weights, or load the model they were made from",
        )
    if lost := sorted(name for name in said.stale if _target(name, said) in missing):
        yield StudfinderError(
            f"the shards of {source} lack {some(lost)}, which the index says are in {said.stale[lost[0]]}",
            do="A shard is of another version of the model: download or save all of them again",
        )
    elif missing:
        held = f"; the files hold instead {some(leftover)}" if leftover else ""
        yield StudfinderError(
            f"{len(missing):,} of {len(said.slots):,} tensors {'is' if len(missing) == 1 else 'are'} not in {source} "
            f"and would be random ({some(missing)}){held}",
            expected="every tensor of the model",
            do=cause(said, missing, leftover),
        )
    for name, shape, wanted in said.mismatched[:1]:
        more = f" (and {len(said.mismatched) - 1:,} more)" if len(said.mismatched) > 1 else ""
        turned = shape[::-1] == wanted and len(shape) > 1
        yield StudfinderError(
            f"tensor {name} of {source} is {_shape(shape)}, but the model wants {_shape(wanted)}{more}",
            expected="the sizes in config.json",
            do="Transpose it" if turned else "config.json or the weights are another model's",
        )
    homeless = leftover - scales
    if homeless and not missing:
        yield StudfinderError(
            f"the model has no place for {_count(homeless)} that {source} holds ({some(homeless)})",
            expected="a checkpoint of this class",
            do=cause(said, missing, leftover),
        )


def _twice(source: str, targets: _Targets) -> Iterator[StudfinderError]:
    first: dict[str | None, str] = {}
    for name, target in targets.items():
        if target is not None and first.setdefault(target, name) != name:
            yield StudfinderError(
                f"{source} holds tensor {target} under two names, {first[target]} and {name}",
                expected="one of the two",
                do="Delete the one that is left over",
            )
            return


def _cast(source: str, said: Report, targets: _Targets, listed: list[str]) -> Iterator[StudfinderError]:
    """Integers and fp8 that would be cast to weights are refused; floats of another dtype are listed."""
    bad, cast = {}, Counter[tuple[str, str]]()
    usual = Counter(slot.dtype for slot in said.slots.values()).most_common(1)[0][0] if said.slots else "float32"
    for name, target in targets.items():
        if target is None and (name in said.unexpected or any(re.search(p, name) for p in said.passed_over)):
            continue
        stored, wanted = said.held[name].dtype, usual if target is None else said.slots[target].dtype
        if (stored in FLOATS) != ("float" in wanted and "float8" not in wanted):
            bad[name] = stored
        elif stored in FLOATS and str(FLOATS[stored]) != f"torch.{wanted}":
            cast[stored, wanted] += 1
    if bad:  # scales without weights, or weights without scales
        kinds = " and ".join(sorted(set(bad.values())))
        yield StudfinderError(
            f"{_count(bad)} of {source} would be cast from {kinds} to float without a scale ({some(bad)})",
            expected="floats, or a quantization_config in config.json that says how to decode them",
            do="Load the model it was made from, or add the quantization_config and the scales that belong to it",
        )
    if not said.asked:
        listed += [f"stored as {a} and cast to {b}: {_count(range(n))}" for (a, b), n in sorted(cast.items())]


def _sizes(source: str, said: Report, targets: _Targets) -> Iterator[StudfinderError]:
    """What is converted on the way in: as many numbers go in as come out, and experts are numbered without a gap."""
    left_out = [kind for kind in _NEED_NOT_BE if any(re.search(kind, name) for name in said.unexpected)]
    converted = [
        name
        for name, target in targets.items()
        if target is None
        and name not in said.unexpected
        and not any(re.search(pattern, name) for pattern in (*said.passed_over, *left_out))
    ]
    reached = {said.slots[target].storage for target in targets.values() if target is not None}
    rest = {slot.storage: slot.numel for name, slot in said.slots.items() if slot.storage not in reached}
    for name, slot in said.slots.items():
        if name not in targets.values() and slot.constant:
            rest.pop(slot.storage, None)
    held, wanted = sum(math.prod(said.held[name].shape) for name in converted), sum(rest.values())
    if said.held and held != wanted:
        yield StudfinderError(
            f"{source} holds {held:,} numbers ({some(converted)}) for tensors of {wanted:,}",
            expected="each number once",
            do="A tensor is there twice, or under an older name as well: delete what is left over",
        )
    if (gap := expert_gap(source, converted)) is not None:
        yield gap


def _count(names: Any) -> str:
    return f"{len(names):,} tensor{'' if len(names) == 1 else 's'}"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"

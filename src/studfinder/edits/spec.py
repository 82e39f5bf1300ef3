"""Edits as one line of text, for the command line: KIND[=NUMBER]:TARGET[@prefill|@always][@clean|@touched].

zero:runs/qwen                                        the proven super weights of a scan
zero:runs/qwen#tested                                 all that were tested; #all: every candidate
zero:runs/qwen#massive_activations                    where each channel first turns massive, its largest entry
mean:runs/qwen#massive_values                         its massive dims, head by head
scale=0.5:model.layers.11.mlp.down_proj.weight[507,1229]      one weight; ":" is all of an axis
pooled-mean:query+key.top1@prefill                    a selection in all layers, or in some: query[0-3,7].top1
deviation:key.pre_rope.above5                         before RoPE, the dims above 5 times their head's mean
noise=0.1:residual[3].all                             any site of the model
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from studfinder.edits.disruption import dims
from studfinder.edits.edit import Edit, EditList, SiteEdit, Weights
from studfinder.edits.makers import (
    Activations,
    Editable,
    constant_only,
    deviation_only,
    mean,
    noise,
    scale,
    set_to,
    shuffle,
    zero,
)
from studfinder.edits.select import WHICH, Selection, meant
from studfinder.edits.selections import (
    AboveLambda,
    Coordinates,
    Entries,
    Everything,
    LargestEntry,
    MatchedDims,
    RandomDims,
    TopDims,
)
from studfinder.errors import StudfinderError
from studfinder.models import LM, check_findings
from studfinder.records import Findings, MassiveActivation, MassiveValue, SuperWeight
from studfinder.runs import read
from studfinder.sites import KINDS, Site

_PLAIN: dict[str, Callable[..., Sequence[Edit]]] = {
    "zero": zero,
    "mean": mean,
    "constant": constant_only,
    "deviation": deviation_only,
    "shuffle": shuffle,
}
_NUMBERED: dict[str, Callable[..., Sequence[Edit]]] = {"scale": scale, "set": set_to, "noise": noise}
_KINDS = "zero, mean, pooled-mean, constant, deviation, shuffle, scale=FACTOR, set=VALUE or noise=STD"
_TARGETS = "a scan (runs/name, runs/name#massive_values), PARAMETER[row,col], or SITES.SELECTION (query+key.top1)"
_SELECTIONS: dict[str, Callable[[str], Entries]] = {
    "top": lambda n: TopDims(int(n or 1)),
    "smallest": lambda n: TopDims(int(n or 1), largest=False),
    "above": lambda n: AboveLambda(float(n or 5)),
    "random": lambda n: RandomDims(int(n or 1)),
    "matched": lambda n: MatchedDims(int(n or 1)),
    "band": lambda n: MatchedDims(int(n or 1), by="band"),
    "dim": lambda n: Coordinates(tuple(int(dim) for dim in n.split(","))),
    "largest": lambda n: LargestEntry((int(n),) if n else None),
    "all": lambda _: Everything(),
}
_SITES = re.compile(r"(?P<names>[a-z_+]+(?:\.(?:pre_rope|input|output))?)(?:\[(?P<layers>[\d,-]+)\])?\.(?P<select>.+)")
_SELECT = re.compile(r"(?P<name>[a-z]+)(?P<number>[\d.,]*?)(?:\.seed(?P<seed>\d+))?")
_WEIGHT = re.compile(r"(?P<name>[\w.]+)\[(?P<index>[\d:, ]+)\]")


def parse_edits(lm: LM, text: str) -> tuple[Edit, ...]:
    """The edits that a line of text names.

    Args:
        text: KIND[=NUMBER]:TARGET, then @prefill or @always and @clean or @touched. Selections that draw take `.seedN`
            after them. Of a scan, `#proven` super weights are the default; `#tested` and `#all` are more.

    Raises:
        StudfinderError: the text is no edit, there is no such scan, site or parameter, the scan is of another model, or
            it found nothing of the kind.
    """
    kind, found, rest = text.partition(":")
    name, given, number = kind.strip().partition("=")
    if not found or not rest.strip():
        raise StudfinderError(f"{text!r} is not an edit", expected=f"KIND:TARGET, KIND being {_KINDS}")
    target, options = _options(rest.strip())
    cache = options.pop("cache", None)
    edits = _maker(name, number if given else None)(_target(lm, target), options)
    if cache is None:
        return tuple(edits)
    return tuple(
        replace(edit, cache=cache)
        if isinstance(edit, SiteEdit) and Site.parse(edit.site).kind in ("key", "value")
        else edit
        for edit in edits
    )


def edits_of(lm: LM, given: Any) -> tuple[Edit, ...]:
    """What is given as edits, in order: an edit, a line of text, an EditList, or any list of those.

    Raises:
        StudfinderError: nothing is given, or something that does not say what becomes of which numbers.
    """
    found = tuple(_each(lm, given))
    if not found:
        raise StudfinderError("there are no edits", expected="at least one, e.g. sf.edits.zero(finding)")
    return found


def _each(lm: LM, given: Any) -> Iterator[Edit]:
    if isinstance(given, Edit):
        yield given
    elif isinstance(given, str):
        yield from parse_edits(lm, given)
    elif isinstance(given, EditList):
        yield from given.edits
    elif isinstance(given, Iterable) and not isinstance(given, Mapping | bytes | torch.Tensor):
        for part in given:
            yield from _each(lm, part)
    elif isinstance(given, Findings | SuperWeight | MassiveActivation | MassiveValue | Weights | Activations):
        raise StudfinderError(
            f"{type(given).__name__} says which numbers, not what becomes of them",
            expected="an edit",
            do="Say zero(...), scale(..., factor), mean(...) or another kind of edit of it",
        )
    else:
        raise StudfinderError(
            f"{type(given).__name__} is no edit",
            expected="what zero(...), mean(...) and so on return, a line such as 'zero:runs/name', or a list of those",
        )


def _maker(name: str, number: str | None) -> Callable[[Editable, dict[str, Any]], Sequence[Edit]]:
    value = _number(name, number)
    if name == "pooled-mean" and value is None:
        return lambda target, options: mean(target, pooled=True, **options)
    if name == "shuffle" and value is not None:
        return lambda target, options: shuffle(target, int(value), **options)
    if name in _PLAIN and value is None:
        return lambda target, options: _PLAIN[name](target, **options)
    if name in _NUMBERED and value is not None:
        return lambda target, options: _NUMBERED[name](target, value, **options)
    raise StudfinderError(f"{name if number is None else f'{name}={number}'!r} is not a kind of edit", expected=_KINDS)


def _number(name: str, text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        raise StudfinderError(f"{text!r} in {name}={text}", expected="a number") from None


def _options(text: str) -> tuple[str, dict[str, Any]]:
    """The target, and what was asked for behind it."""
    options: dict[str, Any] = {}
    fields = {"prefill": "when", "always": "when", "clean": "cache", "touched": "cache"}
    while True:
        front, at, word = text.rpartition("@")
        if not at or word not in fields:
            return text, options
        options.setdefault(fields[word], word)
        text = front


def _target(lm: LM, text: str) -> Editable:
    weight = _WEIGHT.fullmatch(text)
    if weight is not None and weight["name"] in dict(lm.model.named_parameters(remove_duplicate=False)):
        index = tuple(None if at.strip() == ":" else _whole(at, text) for at in weight["index"].split(","))
        return Weights(parameter=weight["name"], entries=(index,))
    sites = _SITES.fullmatch(text)
    if sites is not None and all(name.split(".")[0] in _FIRST_WORDS for name in sites["names"].split("+")):
        return _activations(lm, sites["names"], sites["layers"], _selection(sites["select"]))
    path, _, part = text.partition("#")
    if not Path(path).exists():
        missing = f"there is no parameter {weight['name']!r}" if weight is not None else f"there is no {path!r}"
        raise StudfinderError(f"{missing} to edit", expected=_TARGETS)
    return _from_scan(lm, Path(path), part or "proven")


_FIRST_WORDS = {kind.split(".")[0] for kind in KINDS}


def _whole(text: str, where: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise StudfinderError(f"{text!r} in {where}", expected="a whole number") from None


def _selection(text: str) -> Entries:
    match = _SELECT.fullmatch(text)
    expected = (
        "top1, smallest1, above5, random1, matched1, band1, dim7,9, largest or all; .seed1 after random1 or band1"
    )
    if match is None or match["name"] not in _SELECTIONS:
        raise StudfinderError(f"{text!r} selects nothing", expected=expected)
    try:
        select = _SELECTIONS[match["name"]](match["number"])
    except ValueError:
        raise StudfinderError(f"{match['number']!r} in {text!r}", expected=expected) from None
    if match["seed"] is None:
        return select
    if not isinstance(select, RandomDims | MatchedDims):
        raise StudfinderError(f"{text!r} draws nothing, so it has no seed", expected=expected)
    return replace(select, seed=int(match["seed"]))


def _activations(lm: LM, names: str, layers: str | None, select: Entries) -> Activations:
    wanted = _layers(layers, len(lm.anatomy.layers)) if layers is not None else None
    front, dot, stage = names.rpartition(".")
    kinds, suffix = (front.split("+"), stage) if dot else (names.split("+"), "")
    if all(kind in ("query", "key", "value") for kind in kinds) and suffix in ("", "pre_rope"):
        return dims(lm, kinds, wanted, pre_rope=bool(suffix), select=select)  # type: ignore[arg-type]
    found = []
    for kind in kinds:
        full = f"{kind}.{suffix}" if suffix else kind
        if kind == "embedding":
            sites = [Site(full)]
        else:
            sites = [Site(full, layer) for layer in (range(len(lm.anatomy.layers)) if wanted is None else wanted)]
        for site in sites:
            site.check(lm)
            found.append(str(site))
    return Activations(tuple(found), select)


def _layers(text: str, count: int) -> list[int]:
    """ "0-3,7" as numbers."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        low = _whole(first, f"[{text}]")
        found += range(low, (_whole(last, f"[{text}]") if dash else low) + 1)
    if not found or max(found) >= count:
        raise StudfinderError(f"layers [{text}]", expected=f"some from 0 to {count - 1}, e.g. [0-{count - 1}]")
    return found


def _from_scan(lm: LM, path: Path, part: str) -> Editable:
    findings = read(path, Findings)
    check_findings(lm, findings)
    which: Any = {"super_weights": "proven", "candidates": "all"}.get(part, part)
    if which in WHICH:
        return list(meant(Selection(findings, which)))
    others: dict[str, Callable[[], Sequence[Any]]] = {
        "massive_activations": lambda: _first_massive(findings.massive_activations),
        "massive_values": lambda: findings.massive_values,
    }
    if part not in others:
        raise StudfinderError(f"#{part} of {path}", expected=" or ".join(f"#{name}" for name in (*WHICH, *others)))
    chosen = others[part]()
    if not chosen:
        raise StudfinderError(f"{path} holds no {part.replace('_', ' ')}", do="There is nothing to edit")
    return list(chosen)


def _first_massive(found: Iterable[MassiveActivation]) -> list[Activations]:
    """The layer where each channel first turns massive, and in each row its largest entry there: a scan's positions are
    those of its own prompts, and what is taken away in one layer is gone from the next (as Sun et al. 2024 do it)."""
    first: dict[int, int] = {}
    for entry in found:
        first[entry.dim] = min(entry.layer, first.get(entry.dim, entry.layer))
    return [Activations(f"residual[{layer}]", LargestEntry((dim,))) for dim, layer in sorted(first.items())]

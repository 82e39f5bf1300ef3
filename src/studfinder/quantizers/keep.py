"""What must survive: entries that are held out of their blocks, fused groups that are skipped."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from studfinder.edits import Names, Selection, Weights, meant_numbers, selected
from studfinder.errors import StudfinderError
from studfinder.models import LM, check_findings, check_same_weights
from studfinder.quantizers.finite import finite_weight
from studfinder.quantizers.grid import largest
from studfinder.quantizers.massive_rows import MassiveRows
from studfinder.quantizers.targets import Target
from studfinder.records import Findings, OtherNumber, SuperWeight
from studfinder.records.config import Config, option

__all__ = ["HoldOut", "Keep", "Skip", "hold_out", "skip"]


@dataclass(frozen=True, kw_only=True)
class HoldOut(Config):
    """Entries that are taken out of their block before its range is computed, and keep their value.

    Attributes:
        entries: which, as Weights, or by the name that is printed of a number; whole rows and columns may be named.
        fraction: besides, the largest by magnitude of every matrix, this share of them.
        columns: of the entries their whole columns: everything that the same input is multiplied with.
        model: content hash of the model that they were found in; of another one they are refused. "" is any.
    """

    entries: tuple[Weights | str, ...] = ()
    fraction: float = option(0.0, least=0, below=1)
    columns: bool = False
    model: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.entries and not self.fraction:
            raise StudfinderError("there is nothing to hold out", expected="entries, or a fraction")

    def __str__(self) -> str:
        places: dict[str, list[str]] = {}
        for one in self.entries:
            if isinstance(one, str):
                places.setdefault(one, [])
            else:
                places.setdefault(one.parameter, []).extend(str(list(entry)) for entry in one.entries)
        whole = "what shares a column with " if self.columns else ""
        parts = [f"{whole}{name} {', '.join(entries)}".rstrip() for name, entries in places.items()]
        if self.fraction:
            parts.append(f"the largest {self.fraction:.3%} of each matrix")
        return "held out: " + "; ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Skip:
    """Matrices that stay as they are, with all that is fused with them when served.

    Attributes:
        names: parameter or module names; * and ? match as in a shell.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.names:
            raise StudfinderError("there is nothing to skip", expected="at least one name")

    def __str__(self) -> str:
        return f"left whole: {', '.join(self.names)}"


Keep = HoldOut | Skip


def hold_out(what: Any = None, *, fraction: float = 0.0, columns: bool = False) -> HoldOut:
    """Hold out findings (the proven numbers of a scan, or those that a Selection says), Weights, the printed name of a
    number (`layers.9 down_proj[260, 200]`), or a fraction. What findings hold outside matrices is never rounded.

    With `columns` the whole columns of those weights. A super weight meets an input that is hundreds of times the
    others, and so does every weight of its column: their rounding errors are what it multiplies. The super weight
    itself, the largest of its block, is rounded to itself anyway.

    Raises:
        StudfinderError: nothing to hold out.
    """
    what = selected(what)
    model = what.findings.model.content_hash if isinstance(what, Selection) else ""
    return HoldOut(entries=tuple(_weights(what)), fraction=fraction, columns=columns, model=model)


def skip(*names: str) -> Skip:
    """Leave matrices, and what is fused with them, in full precision: "*.layers.1.mlp.down_proj"."""
    return Skip(names=tuple(names))


def resolve(lm: LM, found: Sequence[Target], keep: Any) -> tuple[dict[str, torch.Tensor], set[str]]:
    """Masks by parameter name, (out, in) with True for held entries, and the fused groups to skip.

    Raises:
        StudfinderError: findings of another model, a name that matches nothing, entries outside a quantised matrix.
    """
    held: dict[str, torch.Tensor] = {}
    skipped: set[str] = set()
    for one in as_keeps(lm, keep):
        if isinstance(one, Skip):
            skipped |= _skipped(found, one)
        elif isinstance(one, HoldOut):
            if one.model:
                check_same_weights(lm, one.model, "of a model")
            _hold(lm, found, one, held)
    return held, skipped


def as_keeps(lm: LM, keep: Any) -> list[Keep]:
    """What was given as `keep`, as records. Findings mean: hold out their proven numbers; where there are none,
    nothing is kept, and `unkept` says so."""
    if keep is None:
        return []
    if isinstance(keep, str):
        keep = hold_out(keep)
    if isinstance(keep, HoldOut):
        names = Names(lm)
        entries = tuple(names.find(one) if isinstance(one, str) else one for one in keep.entries)
        return [replace(keep, entries=entries)]
    if isinstance(keep, Skip):
        return [keep]
    if isinstance(keep, MassiveRows):
        return [HoldOut(entries=keep.of(lm))]
    if isinstance(keep, Findings | Selection):
        keep = selected(keep)
        check_findings(lm, keep.findings)  # also where nothing was found
        return [hold_out(keep)] if keep.numbers else []
    if isinstance(keep, SuperWeight | OtherNumber | Weights):
        return [hold_out(keep)]
    if isinstance(keep, Iterable) and not isinstance(keep, str):
        return [one for part in keep for one in as_keeps(lm, part)]
    raise StudfinderError(
        f"cannot keep a {type(keep).__name__}",
        expected="findings, Weights, hold_out() or skip()",
        do="Say transforms= for what changes the model" if hasattr(keep, "apply") else None,
    )


def unkept(keep: Any) -> list[str]:
    """A line for each scan among what was given as `keep` that holds nothing of the kind: nothing of it is kept."""
    if isinstance(keep, list | tuple):
        return [line for part in keep for line in unkept(part)]
    if not isinstance(keep, Findings | Selection):
        return []
    chosen: Selection = selected(keep)
    return [] if chosen.numbers else [f"nothing is kept: {chosen.nothing}"]


def _weights(what: Any) -> list[Weights | str]:
    if what is None:
        return []
    if isinstance(what, Weights | str):
        return [what]
    if isinstance(what, Selection):
        return _weights(meant_numbers(what))
    if isinstance(what, SuperWeight | OtherNumber):
        return [Weights(parameter=what.parameter, entries=(what.index,))]
    if isinstance(what, Iterable):
        return [weights for part in what for weights in _weights(part)]
    raise StudfinderError(f"cannot hold out a {type(what).__name__}", expected="findings or Weights")


def _skipped(found: Sequence[Target], one: Skip) -> set[str]:
    groups: set[str] = set()
    known = {name: target.fused for target in found for name in (target.name, *target.modules, *target.also)}
    for name in one.names:
        one_group = {known[name]} if name in known else set()
        matched = one_group or {fused for other, fused in known.items() if fnmatch.fnmatchcase(other, name)}
        if not matched:
            raise StudfinderError(f"no matrix is called {name!r}", expected=f"one like {found[0].modules[0]}")
        groups |= matched
    return groups


def _hold(lm: LM, found: Sequence[Target], one: HoldOut, held: dict[str, torch.Tensor]) -> None:
    for weights in one.entries:
        assert not isinstance(weights, str), "names are resolved before"
        own = [target for target in found if weights.parameter in (target.name, target.ref.parameter, *target.also)]
        if not own and one.model:
            continue  # a gain, say, that a scan found: it is not rounded
        if not own:
            raise StudfinderError(f"{weights.parameter} is not quantised", expected="a matrix inside the blocks")
        parameter = lm.model.get_parameter(own[0].ref.parameter)
        whole = torch.zeros(parameter.shape, dtype=torch.bool, device=parameter.device)
        places = own[0].of(whole) if weights.parameter == own[0].name and own[0].part else whole
        for entry in weights.entries:
            try:
                places[tuple(slice(None) if at is None else at for at in entry)] = True
            except IndexError:
                raise StudfinderError(
                    f"{list(entry)} is not an index into {weights.parameter}",
                    expected=f"one within {tuple(places.shape)}",
                ) from None
        for target in own:
            mask = target.of(whole)
            if one.columns:
                mask = mask.any(dim=0).expand_as(mask)
            if mask.any():
                held[target.name] = held.get(target.name, _empty(lm, target)) | mask
    if one.fraction:
        for target in found:
            weight = finite_weight(target, lm)  # NaN would count as the largest
            if count := int(one.fraction * weight.numel()):
                held[target.name] = held.get(target.name, _empty(lm, target)) | largest(weight, count)


def _empty(lm: LM, target: Target) -> torch.Tensor:
    weight = target.weight(lm)
    return torch.zeros(weight.shape, dtype=torch.bool, device=weight.device)

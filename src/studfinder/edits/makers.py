"""zero, mean, restore and so on: edits from findings, weights, or a selection of a site's entries."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from studfinder.edits.edit import Cache, Edit, NullEdit, SiteEdit, WeightEdit, Weights, When
from studfinder.edits.select import Selection, meant
from studfinder.edits.selections import Coordinates, Entries, LargestEntry
from studfinder.edits.values import (
    CleanOutput,
    Deviation,
    Mean,
    Noise,
    Recorded,
    Scale,
    Shuffle,
    Value,
    as_numbers,
)
from studfinder.errors import NotApplicable, StudfinderError
from studfinder.models import LM
from studfinder.records import Findings, MassiveActivation, MassiveValue, SuperWeight


@dataclass(frozen=True)
class Activations:
    """The same selection at some sites.

    Attributes:
        sites: names, or one name, e.g. "query[3]".
        select: which entries of each.
    """

    sites: str | tuple[str, ...]
    select: Entries

    @property
    def names(self) -> tuple[str, ...]:
        """The sites' names."""
        return (self.sites,) if isinstance(self.sites, str) else self.sites


Editable = (
    Findings | Selection | SuperWeight | MassiveActivation | MassiveValue | Weights | Activations | Iterable["Editable"]
)
_EXPECTED = "findings, one of them or a list, Weights or Activations"


def zero(target: Editable, *, when: When = "always", cache: Cache = "touched") -> tuple[Edit, ...]:
    """Set to zero. Raises StudfinderError if the target is nothing.

    Findings are their proven super weights (`Selection` says others). A super weight is its weight; a massive
    activation is the residual stream at its position and dim; a massive value is its dim of its head at all tokens.
    """
    return scale(target, 0.0, when=when, cache=cache)


def scale(target: Editable, factor: float, *, when: When = "always", cache: Cache = "touched") -> tuple[Edit, ...]:
    """Multiply by a factor. Raises StudfinderError if the target is nothing."""
    edits: list[Edit] = []
    for part in _flat(target):
        if isinstance(part, Weights):
            edits.append(WeightEdit(target=part, factor=float(factor)))
        else:
            edits += _at_sites(part, Scale(float(factor)), when, cache)
    return tuple(edits)


def null(edits: Iterable[Edit], seed: int = 0) -> tuple[NullEdit, ...]:
    """What edits do by the mere fact that they change stored numbers: each entry that an edit changes is moved to the
    next number of its dtype instead, up or down by a coin. Its KL is the noise floor of theirs.

    Args:
        seed: of the coins; another one is another draw.

    Raises:
        NotApplicable: an edit of activations, which are stored nowhere.
    """
    found = []
    for edit in edits:
        if isinstance(edit, SiteEdit):
            raise NotApplicable(
                f"an edit of {edit.site} has no null edit", expected="weights, which are stored numbers"
            )
        found.append(NullEdit(of=edit.of if isinstance(edit, NullEdit) else edit, seed=seed))
    return tuple(found)


def mean(
    target: Editable, *, pooled: bool = False, when: When = "always", cache: Cache = "touched"
) -> tuple[SiteEdit, ...]:
    """Replace each selected dim by its mean over the row's real tokens, so that only its constant part is left.

    Args:
        pooled: one mean for all selected dims of a head together, Jin et al.'s; at k = 1 the two are the same.
    """
    return _edits(target, Mean(pooled), when, cache)


def constant_only(target: Editable, *, when: When = "always", cache: Cache = "touched") -> tuple[SiteEdit, ...]:
    """Another name of `mean`: the half of a dim that `deviation_only` takes away."""
    return mean(target, when=when, cache=cache)


def deviation_only(target: Editable, *, when: When = "always", cache: Cache = "touched") -> tuple[SiteEdit, ...]:
    """Take each selected dim's mean over the row's real tokens away, so that only its deviation is left."""
    return _edits(target, Deviation(), when, cache)


def set_to(
    target: Editable,
    values: float | Sequence[float] | torch.Tensor,
    *,
    when: When = "always",
    cache: Cache = "touched",
) -> tuple[SiteEdit, ...]:
    """Set to given numbers: one for all, one for each of the target's coordinates, or a whole (D,) or (H,D) map."""
    return _edits(target, as_numbers(values), when, cache)


def restore(
    target: Editable,
    recorded: Mapping[str, torch.Tensor],
    *,
    when: When = "always",
    cache: Cache = "touched",
) -> tuple[SiteEdit, ...]:
    """Put back what the sites held in another pass over the same tokens.

    Args:
        recorded: tensors by site name, as `capture` returns them. The pass under the edit must have the same tokens;
            cached steps after it are left alone.

    Raises:
        StudfinderError: a site of the target was not recorded.
    """
    edits: list[SiteEdit] = []
    for part in _flat(target):
        for name in _sites_of(part).names:
            if name not in recorded:
                raise StudfinderError(f"nothing was recorded at {name}", do="Name it in capture(...)")
            edits += _at_sites(Activations(name, _sites_of(part).select), Recorded.of(recorded[name]), when, cache)
    return tuple(edits)


def restore_output(lm: LM, weights: SuperWeight | Iterable[SuperWeight]) -> tuple[SiteEdit, ...]:
    """Put back the super activations of super weights that are edited: in each row of the batch, the one entry of
    largest |value| that the matrix would give in that channel for its present input, were the weights what they were.

    Computed in the same pass, so it holds for any prompt (Yu et al. 2024, "+SA"). Compose it:
    `edited(lm, [*zero(found), *restore_output(lm, found)])`.

    Raises:
        StudfinderError: no weights, or one of a fused expert, whose output cannot be replaced.
    """
    grouped: dict[tuple[str, int], list[SuperWeight]] = {}
    for weight in [weights] if isinstance(weights, SuperWeight) else weights:
        writers = [ref.parameter for ref in lm.anatomy.layers[weight.layer].writers]
        if weight.expert is not None or weight.parameter not in writers:
            raise StudfinderError(
                f"the output of {weight} cannot be restored", expected="a down projection that is no fused expert"
            )
        writer = writers.index(weight.parameter)
        name = f"down_proj.output[{weight.layer},{writer}]" if writer else f"down_proj.output[{weight.layer}]"
        grouped.setdefault((name, weight.row), []).append(weight)
    if not grouped:
        raise StudfinderError("there is nothing to restore", expected="at least one super weight")
    return tuple(
        SiteEdit(
            site=name,
            where=LargestEntry((row,)),
            value=CleanOutput(row, tuple(w.col for w in found), tuple(w.value for w in found)),
        )
        for (name, row), found in grouped.items()
    )


def shuffle(
    target: Editable, seed: int = 0, *, when: When = "always", cache: Cache = "touched"
) -> tuple[SiteEdit, ...]:
    """Give each real token the selected entries of another one of the same row. A step of one token has none to give:
    it stays."""
    return _edits(target, Shuffle(seed), when, cache)


def noise(
    target: Editable, std: float, seed: int = 0, *, when: When = "always", cache: Cache = "touched"
) -> tuple[SiteEdit, ...]:
    """Add Gaussian noise; `std` in units of each dim's root mean square over the row's real tokens."""
    if not 0 <= std < float("inf"):
        raise StudfinderError(f"noise of {std}", expected="a finite number, 0 or more")
    return _edits(target, Noise(float(std), seed), when, cache)


def _edits(target: Editable, value: Value, when: When, cache: Cache) -> tuple[SiteEdit, ...]:
    return tuple(edit for part in _flat(target) for edit in _at_sites(_sites_of(part), value, when, cache))


def _at_sites(part: Activations, value: Value, when: When, cache: Cache) -> list[SiteEdit]:
    return [SiteEdit(site=name, where=part.select, value=value, when=when, cache=cache) for name in part.names]


def _sites_of(part: Weights | Activations) -> Activations:
    if isinstance(part, Weights):
        raise StudfinderError(f"{part.parameter} is a weight: it has no tokens", expected="zero or scale for a weight")
    return part


def _flat(target: Editable) -> list[Weights | Activations]:
    chosen = _merged(_parts(target))
    if not chosen:
        raise StudfinderError("the edit has no target", expected=_EXPECTED)
    return chosen


def _parts(target: Editable) -> list[Weights | Activations]:
    if isinstance(target, Weights):
        if not target.entries:
            raise StudfinderError(f"no entries of {target.parameter} are selected", expected="at least one")
        return [target]
    if isinstance(target, Activations):
        if not target.names:
            raise StudfinderError("no site is selected", expected="at least one, e.g. query[3]")
        return [target]
    if isinstance(target, Findings | Selection):
        return _parts(meant(target))
    if isinstance(target, SuperWeight):
        return [Weights(parameter=target.parameter, entries=(target.index,))]
    if isinstance(target, MassiveActivation):
        return [Activations(f"residual[{target.layer}]", Coordinates((target.dim,), None, (target.position,)))]
    if isinstance(target, MassiveValue):
        return [Activations(f"{target.tensor}[{target.layer}]", Coordinates((target.dim,), target.head))]
    if isinstance(target, Iterable) and not isinstance(target, str):
        return [found for part in target for found in _parts(part)]
    do = "sf.read(path) reads findings" if isinstance(target, str | os.PathLike) else None
    raise StudfinderError(f"cannot edit a {type(target).__name__}", expected=_EXPECTED, do=do)


def _merged(parts: Iterable[Weights | Activations]) -> list[Weights | Activations]:
    """Dims of the same head and tokens become one edit: a pooled mean pools over them, and it is quicker. A weight that
    several calls of its module show is one weight."""
    merged: dict[object, Weights | Activations] = {}
    for number, part in enumerate(parts):
        if isinstance(part, Activations) and isinstance(part.select, Coordinates):
            key: object = (part.names, part.select.head, part.select.positions)
            old = merged.get(key)
            dims = old.select.dims if isinstance(old, Activations) and isinstance(old.select, Coordinates) else ()
            dims = tuple(dict.fromkeys((*dims, *part.select.dims)))
            merged[key] = Activations(part.sites, Coordinates(dims, part.select.head, part.select.positions))
        elif isinstance(part, Weights):
            merged[part] = part
        else:
            merged[number] = part
    return list(merged.values())

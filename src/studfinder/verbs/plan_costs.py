"""What each fused group costs in each format: predicted from gradients once, and known again afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.quantizers.formats import group_size
from studfinder.quantizers.mixed import KeptPlaces
from studfinder.quantizers.sensitivity import CostPlace, sensitivities
from studfinder.quantizers.targets import Target, by_fused
from studfinder.records import UNTOUCHED, Format, FormatCost, GroupCosts, Sensitivity
from studfinder.runs import Progress, Work, read, write_bytes
from studfinder.verbs.plan_measure import Bed, kls_of

KEPT_FILE = "kept.safetensors"
SENSITIVITY_FILE = "sensitivity.json"
_MUCH = 0.2
"""A column or row that makes this share of a matrix's cost is named."""


def predicted_costs(
    lm: LM,
    found: Sequence[Target],
    formats: Sequence[Format],
    windows: Sequence[Sequence[int]],
    work: Work,
    *,
    draws: int,
    seed: int,
    progress: Progress,
) -> tuple[tuple[GroupCosts, ...], KeptPlaces]:
    """From one backward pass a window, as a step of the run; the places of kept numbers are a file of it."""
    file = work.path / KEPT_FILE

    def predict() -> dict[str, Any]:
        made = sensitivities(lm, windows, formats, found, draws=draws, seed=seed, progress=progress)
        write_kept(file, made.kept)  # before the step is done, which needs it
        return {
            "costs": {
                group: {name: [one.kl, one.error, one.together] for name, one in own.items()}
                for group, own in made.costs.items()
            },
            "why": {group: why(found, places) for group, places in made.places.items()},
            "nonfinite": made.nonfinite,
        }

    value = work.steps.once("sensitivity", predict)
    if value["nonfinite"]:
        raise StudfinderError(
            f"the gradient of {value['nonfinite'][0]} is not finite", do="Load the model in float32 (--dtype float32)"
        )
    by_name = {one.name: one for one in formats}
    groups = []
    for name, group in by_fused(found).items():
        shapes = tuple((int(rows), int(cols)) for rows, cols in (target.weight(lm).shape for target in group))
        weights = sum(rows * cols for rows, cols in shapes)
        costs = tuple(
            FormatCost(
                stored_as=chosen,
                bits=group_size(lm, group, by_name[chosen]) / weights,
                kl=kl,
                error=error,
                together=together,
            )
            for chosen, (kl, error, together) in value["costs"][name].items()
        )
        modules = tuple(target.modules[0] for target in group)
        groups.append(
            GroupCosts(
                name=name,
                layer=group[0].layer,
                modules=modules,
                shapes=shapes,
                costs=costs,
                why=value["why"].get(name, ""),
            )
        )
    return tuple(groups), read_kept(file)


def write_kept(file: Path, kept: KeptPlaces) -> None:
    """The places of kept numbers, "format|matrix": flat indices."""
    tensors = {f"{name}|{matrix}": places.to(torch.int64) for (name, matrix), places in kept.items()}
    write_bytes(file, lambda path: save_file(tensors, path))


def read_kept(file: Path) -> dict[tuple[str, str], torch.Tensor]:
    """Raises StudfinderError if the file is missing or damaged."""
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError):
        raise StudfinderError(
            f"{file} is missing or not readable", expected="the file that the plan wrote", do="Plan again (--overwrite)"
        ) from None
    return {(name.partition("|")[0], name.partition("|")[2]): places for name, places in tensors.items()}


def earlier_costs(
    place: Path, model_hash: str, text: str, found: Mapping[str, Sequence[Target]], formats: Sequence[Format]
) -> tuple[tuple[GroupCosts, ...], KeptPlaces]:
    """Those of an earlier plan's run, of these groups and formats.

    Raises:
        StudfinderError: of another model or text, or it lacks a group or a format.
    """
    record = read(place, Sensitivity)
    if record.model.content_hash != model_hash:
        raise StudfinderError(f"{place} is of another model ({record.model.id})", do="Leave --from out")
    if record.text != text:
        raise StudfinderError(
            f"the costs in {place} were predicted on other text ({record.text})", expected=f"the same: {text}"
        )
    wanted = {one.name for one in formats}
    known = {one.name: one for one in record.groups}
    for name in found:
        if name not in known:
            raise StudfinderError(f"{place} has no costs of {name}", do="Leave --from out")
    missing = wanted - {cost.stored_as for group in record.groups for cost in group.costs}
    if missing:
        raise StudfinderError(f"{place} has no costs in {min(missing)}", do="Leave --from out, or name other --formats")
    folder = place if place.is_dir() else place.parent
    groups = tuple(
        GroupCosts(
            name=one.name,
            layer=one.layer,
            modules=one.modules,
            shapes=one.shapes,
            costs=tuple(cost for cost in one.costs if cost.stored_as in wanted),
            why=one.why,
        )
        for one in (known[name] for name in found)
    )
    return groups, read_kept(folder / KEPT_FILE)


def why(found: Sequence[Target], places: Sequence[CostPlace]) -> str:
    """Where a group's cost lies, in words; "" where it lies everywhere."""
    total = sum(one.kl for one in places)
    if not total:
        return ""
    said = []
    worst = max(places, key=lambda one: one.kl)
    if len(places) > 1 and worst.kl > 0.6 * total:
        said.append(f"{worst.kl / total:.0%} in {worst.matrix.rpartition('.')[0].rpartition('.')[2]}")
    for one in places:
        if one.kl < 0.5 * total:
            continue
        if one.column_share > _MUCH:
            said.append(f"{one.column_share:.0%} in column {one.column}")
        if one.row_share > _MUCH:
            said.append(f"{one.row_share:.0%} in row {one.row}")
    return ", ".join(said)


def measured_costs(bed: Bed, groups: Sequence[GroupCosts], windows: Sequence[Sequence[int]]) -> tuple[GroupCosts, ...]:
    """The same with the KL of rounding each group alone, in every format that rounds."""
    pairs = {
        f"{group.name}|{cost.stored_as}": {group.name: cost.stored_as}
        for group in groups
        for cost in group.costs
        if cost.stored_as != UNTOUCHED
    }
    seen = kls_of(bed, "measuring every group in every format", windows, pairs)

    def told(group: GroupCosts, cost: FormatCost) -> FormatCost:
        name = f"{group.name}|{cost.stored_as}"
        return replace(cost, measured=seen.kl(name)) if name in pairs else cost

    return tuple(replace(group, costs=tuple(told(group, cost) for cost in group.costs)) for group in groups)

"""What a recipe says of a model's matrices: how each is stored, how its inputs are rounded, which are left alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from studfinder.errors import StudfinderError
from studfinder.models import LM, content_hash
from studfinder.quantizers import ActivationScheme, Scheme, Target
from studfinder.quantizers.storage import Storage
from studfinder.quantizers.targets import by_fused
from studfinder.records import Plan, Recipe, Solution
from studfinder.records.scheme import Format, Inputs, format_named
from studfinder.report.words import count
from studfinder.runs import kind_of, read
from studfinder.verbs.plan_costs import KEPT_FILE, read_kept

_PLAN = Plan.format


@dataclass(frozen=True, kw_only=True)
class Assigned:
    """Of matrices by parameter name.

    Attributes:
        schemes: of those that are not stored as the method says.
        inputs: of those whose inputs are rounded.
        left: those that stay as they are.
        notes: what is said of it.
    """

    schemes: dict[str, Scheme] = field(default_factory=dict)
    inputs: dict[str, ActivationScheme] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def unreadable(found: Sequence[Target], layout: Mapping[str, Storage]) -> str:
    """Why plain transformers cannot read matrices that are stored in several ways; "" if it can.

    It decompresses experts, which it fuses as it loads them, in one scheme; and so it does all others where zero points
    are packed, because compressed-tensors lays those out wrongly when modules are prepared to load into.
    """
    stored = {target: layout[target.name] for target in found if target.name in layout}
    experts = {one for target, one in stored.items() if target.part is not None}
    others = {one for target, one in stored.items() if target.part is None}
    if len(experts) > 1:
        return "plain transformers reads experts of one scheme only, and these have several"
    if len(others) > 1 and any(one.scheme.zero == "integer" and one.format == "pack-quantized" for one in others):
        return "plain transformers reads packed zero points only where all matrices have one scheme"
    return ""


def recipe_given(given: Any) -> tuple[Recipe, dict[str, torch.Tensor]]:
    """A recipe, or the one in a file or the folder of a run, a plan's too; and of matrices that keep single numbers
    which, as flat indices by parameter name.

    Raises:
        StudfinderError: there is none; a plan that keeps numbers was given without its run's folder; or it has several
            solutions, and none of them is for us.
    """
    if isinstance(given, Recipe):
        return given, {}
    if isinstance(given, Plan):
        solution = _own(given)
        if any(format_named(group.stored_as).kept for group in solution.groups):
            raise StudfinderError("which numbers the plan keeps stands in its run", expected="the run's folder")
        return given.recipe(solution.tool), {}
    kind, file = kind_of(Path(given))
    if kind != _PLAN:
        return read(given, Recipe), {}
    plan = read(file, Plan)
    solution = _own(plan)
    places = read_kept(file.parent / KEPT_FILE)
    kept = {
        f"{module}.weight": places[group.stored_as, f"{module}.weight"]
        for group in solution.groups
        if format_named(group.stored_as).kept
        for module in group.modules
    }
    return plan.recipe(solution.tool, origin=str(given)), kept


def _own(plan: Plan) -> Solution:
    """A plan's solution that is carried out here: in formats of ours, or the only one."""
    own = [one for one in plan.solutions if not one.tool] or list(plan.solutions)
    if len(own) > 1:
        raise StudfinderError(
            f"the plan has a solution for each of {', '.join(one.tool for one in own)}, and none for quantize",
            do="Make one by `studfinder plan` without --for, or give one of its recipes",
        )
    return own[0]


def rounding_of(inputs: Inputs) -> ActivationScheme:
    """How a method here rounds such inputs. Raises StudfinderError where none does."""
    if inputs.element == "fp4" or isinstance(inputs.scope, int):
        raise StudfinderError(
            f"inputs in {inputs.name} are not rounded here", expected="int8 or fp8, by token or by tensor"
        )
    return ActivationScheme(element=inputs.element, scope=inputs.scope)


def alike(found: Iterable[Target], inputs: Inputs | None) -> Assigned:
    """Every matrix as the method says, with inputs rounded in one way or not at all."""
    return Assigned() if inputs is None else Assigned(inputs={target.name: rounding_of(inputs) for target in found})


def assigned(lm: LM, recipe: Recipe, found: Sequence[Target], scale: Any) -> Assigned:
    """What a recipe says of a model's matrices; those that it does not name stay as they are.

    Args:
        lm: the model, with its weights.
        found: every matrix that may be quantised.
        scale: the type in which 16-bit scales are stored.

    Raises:
        StudfinderError: it was made for other weights, names what is not there, or splits what engines fuse.
    """
    own = content_hash(lm)
    if own != recipe.model.content_hash:
        raise StudfinderError(
            f"the recipe was made for other weights: those of {recipe.model.id} with hash "
            f"{recipe.model.content_hash[:12]}, and {lm.source.id} has {own[:12]}",
            do="Make it anew for this model",
        )
    formats = {name: format_named(stored) for name, stored in recipe.formats.items()}
    modules = {module: target for target in found for module in target.modules}
    wrong = next((name for group in recipe.groups for name in group.members if name not in modules), None)
    if wrong is not None:
        raise StudfinderError(
            f"the recipe names {wrong}, which is not a matrix that is quantised in {lm.source.id}",
            do=f"See what it matches: studfinder recipe check RECIPE {lm.source.id}",
        )
    left, unnamed = [], 0
    schemes: dict[str, Scheme] = {}
    inputs: dict[str, ActivationScheme] = {}
    for group in by_fused(found).values():
        said = {formats.get(target.modules[0]) for target in group}
        if len(said) > 1:
            names = ", ".join(target.modules[0] for target in group)
            raise StudfinderError(f"the recipe splits what engines run as one: {names}", expected="one format for all")
        format = said.pop() or Format()
        unnamed += group[0].modules[0] not in formats
        if format.weights is None:
            left += [target.name for target in group]
            continue
        plain = format.weights.scale in ("bfloat16", "float16")
        scheme = replace(format.weights, scale=scale) if plain else format.weights
        schemes |= dict.fromkeys((target.name for target in group), scheme)
        if format.inputs is not None:
            inputs |= dict.fromkeys((target.name for target in group), rounding_of(format.inputs))
    notes = [f"formats as decided by {recipe.decided}"]
    if unnamed:
        notes.append(f"{count(unnamed, 'fused group')} that the recipe does not name stay as they are")
    return Assigned(schemes=schemes, inputs=inputs, left=tuple(left), notes=tuple(notes))

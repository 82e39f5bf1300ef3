"""A plan: a format for every fused group of a model, what that is predicted to cost, and how it was judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from studfinder.records.interval import Interval
from studfinder.records.presented import Presented
from studfinder.records.public import OneLine
from studfinder.records.recipe import LeftOut, Recipe, RecipeGroup
from studfinder.records.run import ModelCard, RunCard
from studfinder.records.scheme import format_named


@dataclass(frozen=True, kw_only=True)
class FormatCost(OneLine):
    """What a fused group costs in one format; KLs in nats per token.

    Attributes:
        stored_as: the format's name.
        bits: true bits a weight, scales, zero points and kept numbers included.
        kl: predicted, by the diagonal of the Fisher information.
        error: the standard error of that, from the windows.
        together: predicted by the group's own direction; None where it was not followed. Far from `kl` where errors of
            one matrix add up.
        measured: KL when this group alone is rounded; None where it was not measured.
    """

    stored_as: str
    bits: float
    kl: float
    error: float
    together: float | None = None
    measured: Interval | None = None

    @property
    def nats(self) -> float:
        """What it is taken to cost: as measured, where it was."""
        return self.kl if self.measured is None else max(self.measured.value, 0.0)


@dataclass(frozen=True, kw_only=True)
class GroupCosts(OneLine):
    """A fused group in every candidate format.

    Attributes:
        name: of the group.
        layer: its block.
        modules, shapes: its matrices, and (out, in) of each.
        costs: by format.
        why: where its cost lies, in words.
    """

    name: str
    layer: int
    modules: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    costs: tuple[FormatCost, ...]
    why: str = ""

    @property
    def weights(self) -> int:
        """How many numbers."""
        return sum(rows * cols for rows, cols in self.shapes)

    def cost(self, stored_as: str) -> FormatCost:
        """In one format. Raises KeyError where it does not fit."""
        found = {one.stored_as: one for one in self.costs}
        return found[stored_as]


@dataclass(frozen=True, kw_only=True)
class Sensitivity(OneLine):
    """What rounding each fused group costs in each format, from which any budget can be planned again.

    Attributes:
        model, run: of what, made how.
        text: the windows that the gradients were taken on, in words.
        tokens: of them.
        groups: every fused group, in order.
    """

    format: Literal["studfinder.sensitivity"] = "studfinder.sensitivity"
    version: Literal[1] = 1
    model: ModelCard
    run: RunCard
    text: str
    tokens: int
    groups: tuple[GroupCosts, ...]


@dataclass(frozen=True, kw_only=True)
class PlannedGroup(OneLine):
    """A fused group with its format.

    Attributes:
        name, layer, modules, shapes: as of `GroupCosts`.
        stored_as: its format.
        bits: true bits a weight.
        kl: what it was taken to cost, nats per token.
        basis: what that comes from: predicted, or predicted and corrected by a KL measured of the group alone
            ("measured") or in the rounded model ("restored").
        why: where its cost lies, in words.
    """

    name: str
    layer: int
    modules: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    stored_as: str
    bits: float
    kl: float
    basis: Literal["predicted", "measured", "restored"] = "predicted"
    why: str = ""

    @property
    def weights(self) -> int:
        """How many numbers."""
        return sum(rows * cols for rows, cols in self.shapes)


@dataclass(frozen=True, kw_only=True)
class Rival(OneLine):
    """Another choice of formats for the same matrices, judged on the same text.

    Attributes:
        name: in words.
        kind: "uniform", one format for all; "rule", a simple rule at the plan's bits; "random", groups drawn at random
            for the better format at the plan's bits; "null", every number moved to a neighbour in its dtype.
        bits: true bits a weight.
        kl: nats per token.
        less: by how much the plan's KL is below it, paired by window.
    """

    name: str
    kind: Literal["uniform", "rule", "random", "null"]
    bits: float
    kl: Interval
    less: Interval


@dataclass(frozen=True, kw_only=True)
class Solution(OneLine):
    """A plan for one tool, or for none.

    Attributes:
        tool: for which the formats were restricted; "" for our own quantize.
        formats: candidates.
        groups: every fused group with its format.
        bits: true bits a weight over the planned matrices.
        size: bytes of a checkpoint with everything else in 16 bits.
        predicted: KL that was expected, nats per token.
        gap: an optimum of the predicted costs is better by at most this share.
        kl: measured on text that chose nothing; None where it was not judged.
        rivals: what it was judged beside.
        better: whether its KL is shown to be below that of every uniform format that costs no more, and of groups at
            random; None where it was not judged.
        verdict: the same in a sentence.
        notes: what was found on the way.
    """

    tool: str = ""
    formats: tuple[str, ...]
    groups: tuple[PlannedGroup, ...]
    bits: float
    size: int
    predicted: float
    gap: float
    kl: Interval | None = None
    rivals: tuple[Rival, ...] = ()
    better: bool | None = None
    verdict: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan(Presented):
    """A measured budget of bits.

    Attributes:
        model, run: of what, made how.
        budget: in words.
        method: how weights are rounded.
        text, judged_on: the windows that chose, and those that judged, in words.
        solutions: one for each tool, or a single one.
        left_out: matrices that are not planned: what was skipped, the head, routers.
        notes: what holds for all.
    """

    format: Literal["studfinder.plan"] = "studfinder.plan"
    version: Literal[1] = 1
    model: ModelCard
    run: RunCard
    budget: str
    method: str
    text: str
    judged_on: str
    solutions: tuple[Solution, ...]
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()

    def recipe(self, tool: str = "", *, origin: str = "") -> Recipe:
        """A solution as a recipe, which tools' files are written from. It has no place for single numbers: of a group
        that keeps some it says so, and which they are is in the run's kept.safetensors.

        Args:
            tool: whose solution; see `solution`.
            origin: where the plan was read from.
        """
        one = self.solution(tool)
        judged = "not judged" if one.kl is None else f"KL {one.kl} nats per token, measured"
        return Recipe(
            model=self.model,
            decided=f"a plan at {self.budget}: {one.bits:.4g} bits a weight, {judged}",
            origin=origin,
            run=self.run,
            groups=tuple(map(_recipe_group, one.groups)),
            left_out=self.left_out,
            versions=self.run.versions,
        )

    def solution(self, tool: str = "") -> Solution:
        """That for a tool; the first where none is said. Raises KeyError if there is none."""
        return {one.tool: one for one in self.solutions}[tool] if tool else self.solutions[0]

    def __repr__(self) -> str:
        said = "; ".join(
            f"{one.tool or 'quantize'}: {one.bits:.4g} bits" + (f", KL {one.kl}" if one.kl else "")
            for one in self.solutions
        )
        return f"Plan({self.model.id!r}, {self.budget}: {said})"


def _recipe_group(group: PlannedGroup) -> RecipeGroup:
    format = format_named(group.stored_as)
    kept = [f"{100 * format.kept:g}% of its numbers are kept"] if format.kept else []
    return RecipeGroup(
        name=group.name,
        members=group.modules,
        shapes=group.shapes,
        stored_as=format.plain.name,
        why="; ".join([*kept, *([group.why] if group.why else [])]),
        layer=group.layer,
    )

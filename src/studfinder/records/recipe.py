"""A recipe: a format for every fused group of a model. `studfinder.recipes` writes it for a tool."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from studfinder.errors import StudfinderError
from studfinder.records.presented import Presented
from studfinder.records.public import OneLine
from studfinder.records.run import ModelCard, RunCard
from studfinder.records.scheme import UNTOUCHED, format_named


@dataclass(frozen=True, kw_only=True)
class RecipeGroup(OneLine):
    """Matrices that serving engines run as one, so that they share a format. A matrix that is fused with none is a
    group of its own.

    Attributes:
        name: of the group: the module's, or those of all members behind what they share, e.g.
            "model.layers.0.self_attn.q_proj+k_proj+v_proj".
        members: the modules, by the names that Hugging Face has for them; of experts those of matrices kept apart, as
            checkpoints have them, also where transformers stacks them in one parameter.
        shapes: (out, in) of each member, in the same order; empty where they are not known.
        stored_as: their format, e.g. "int4-g64-zero", "fp8+fp8", "16" (left alone); see `records.scheme`.
        why: in a few words.
        layer: the block, from 0; None outside the blocks.
    """

    name: str
    members: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...] = ()
    stored_as: str
    why: str = ""
    layer: int | None = None

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError(f"group {self.name!r} has no members")
        if self.shapes and (len(self.shapes) != len(self.members) or any(min(shape) < 1 for shape in self.shapes)):
            raise ValueError(f"group {self.name!r}: {len(self.shapes)} shapes for {len(self.members)} members")
        try:
            format = format_named(self.stored_as)
        except StudfinderError as error:
            raise ValueError(f"group {self.name!r}: {error}") from None
        if format.kept:
            raise ValueError(f"group {self.name!r}: {self.stored_as} says how many numbers are kept, and not which")

    @property
    def weights(self) -> int:
        """How many numbers are in it; 0 where the shapes are not known."""
        return sum(rows * cols for rows, cols in self.shapes)


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A matrix that no recipe of ours quantises: the head, an embedding, a router, another modality's tower.

    Attributes:
        module: by its Hugging Face name.
        why: in a few words.
    """

    module: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Recipe(Presented):
    """A format for every fused group of a model.

    Attributes:
        model: which, with the hash of its weights and its architecture.
        decided: what decided, in a sentence.
        origin: what that was read from: a run's folder or a file, in words; empty if it was made in memory.
        run: the run that decided, if one did.
        groups: every fused group of the blocks, once, in order.
        left_out: matrices that stay as they are in any case.
        versions: of the packages that made it.
    """

    format: Literal["studfinder.recipe"] = "studfinder.recipe"
    version: Literal[1] = 1
    model: ModelCard
    decided: str
    origin: str = ""
    run: RunCard | None = None
    groups: tuple[RecipeGroup, ...]
    left_out: tuple[LeftOut, ...] = ()
    versions: dict[str, str]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for name in (*(member for group in self.groups for member in group.members), *self.left_modules):
            if name in seen:
                raise ValueError(f"{name} is in the recipe twice")
            seen.add(name)

    @property
    def left_modules(self) -> tuple[str, ...]:
        """The names of what is left out."""
        return tuple(one.module for one in self.left_out)

    @property
    def formats(self) -> dict[str, str]:
        """The format of every member, and of what is left out ("16"), by module, in order."""
        members = {member: group.stored_as for group in self.groups for member in group.members}
        return {**members, **dict.fromkeys(self.left_modules, UNTOUCHED)}

    def by_format(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Each format of a group with the members that have it, in the order in which they come first."""
        found: dict[str, list[str]] = {}
        for group in self.groups:
            found.setdefault(group.stored_as, []).extend(group.members)
        yield from ((name, tuple(members)) for name, members in found.items())

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(members)} in {name}" for name, members in self.by_format())
        return f"Recipe({self.model.id!r}: {counts})"

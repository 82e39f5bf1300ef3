"""An edit is a small frozen record: which numbers, and what is done to them. It serialises and hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field

from studfinder.edits.neighbours import Indices, to_neighbours
from studfinder.edits.selections import Entries
from studfinder.edits.values import Value
from studfinder.models import LM
from studfinder.records import to_json
from studfinder.sites import Site

When = Literal["always", "prefill"]
Cache = Literal["touched", "clean"]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Entries of one Hugging Face parameter.

    Attributes:
        parameter: its name.
        entries: literal indices; None along an axis means all of it, so (3, None) is row 3 of a matrix.
    """

    parameter: str
    entries: tuple[tuple[int | None, ...], ...]


@dataclass(frozen=True, kw_only=True)
class WeightEdit:
    """Multiply entries of a parameter by a factor; 0 sets them to zero.

    Attributes:
        target: which entries.
        factor: what they are multiplied by.
    """

    kind: Literal["weight"] = "weight"
    target: Weights
    factor: float

    def changed(self, values: torch.Tensor, _place: Indices) -> torch.Tensor:
        """What the entries at a place of the parameter become."""
        return torch.zeros_like(values) if self.factor == 0 else values * self.factor


@dataclass(frozen=True, kw_only=True)
class NullEdit:
    """Move each entry that an edit changes to the next number of its dtype instead, up or down by a coin.

    Attributes:
        of: the edit.
        seed: of the coins; each entry of a parameter has its own, whatever else is edited.
    """

    kind: Literal["null"] = "null"
    of: WeightEdit
    seed: int

    @property
    def target(self) -> Weights:
        """Which entries."""
        return self.of.target

    def changed(self, values: torch.Tensor, place: Indices) -> torch.Tensor:
        """What the entries at a place of the parameter become."""
        moved = to_neighbours(values, place, f"{self.seed} {self.target.parameter}")
        return torch.where(self.of.changed(values, place) == values, values, moved)


@dataclass(frozen=True, kw_only=True)
class SiteEdit:
    """Change entries of a site in every forward pass.

    Statistics (which dims, their means) are those of each row's real tokens in the present call. A call of one token
    that continues a cache uses those of the last call of several tokens.

    Attributes:
        site: its name, e.g. "query[3]", "key.pre_rope[3]", "residual[3]".
        where: which entries.
        value: what they become.
        when: "prefill" leaves calls of one new token alone; every teacher-forced pass is a prefill.
        cache: of `key` and `value`, which attention gets from the cache: "touched" writes into the cached rows
            themselves, so that later steps see them; "clean" changes a copy, for this call only. All other sites lie
            before the cache and reach it: "touched".
    """

    kind: Literal["site"] = "site"
    site: str
    where: Annotated[Entries, Field(discriminator="kind")]
    value: Annotated[Value, Field(discriminator="kind")]
    when: When = "always"
    cache: Cache = "touched"


Edit = WeightEdit | NullEdit | SiteEdit


@dataclass(frozen=True, kw_only=True)
class EditList:
    """Edits as a file keeps them."""

    format: Literal["studfinder.edits"] = "studfinder.edits"
    version: Literal[1] = 1
    edits: tuple[Annotated[Edit, Field(discriminator="kind")], ...]


def edits_hash(edits: Sequence[Edit]) -> str:
    """A hash of what the edits do, in order; the empty list has one too."""
    return hashlib.sha256("\n".join(to_json(edit) for edit in edits).encode()).hexdigest()


def layer_of(lm: LM, edits: Iterable[Edit]) -> int:
    """The first block that works differently, or gets something different, under the edits.

    A site inside a block changes that block; its output changes the next one (the number of blocks, for the last);
    the embedding, and weights outside the blocks, change block 0.
    """
    return min((_first(lm, edit) for edit in edits), default=0)


def _first(lm: LM, edit: Edit) -> int:
    if isinstance(edit, SiteEdit):
        site = Site.parse(edit.site)
        return 0 if site.layer is None else site.layer + (site.kind == "residual")
    owners = [
        index for index, layer in enumerate(lm.anatomy.layers) if edit.target.parameter.startswith(layer.block + ".")
    ]
    return owners[0] if owners else 0

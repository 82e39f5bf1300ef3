"""What a variant needs to know of an attention module: measuring.py sees it, and a converted model's config keeps it.

No architecture is known here. A module's own forward pass keeps running; a place says which of its projections make
keys, values and queries, which matrix reads what attention gives, and whether its attention function is a softmax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from studfinder.attention.variant import AttentionShape

GROUPS = "num_key_value_groups"
"""Where transformers' attention functions read how many query heads share a key head."""

Pairs = Literal["halves", "neighbours", "once"]
"""How cosines lie: pair j at j and at j + half; at 2 j and 2 j + 1; or one number a pair, as complex ones do."""


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Output channels of a projection, by head: those of head h are `first[h]` and the `width - 1` that follow.

    Attributes:
        projection: the module, below the attention module.
        channels: how many output channels it has.
        transposed: whether its weight is stored (in, out).
    """

    projection: str
    first: tuple[int, ...]
    width: int
    channels: int
    transposed: bool = False

    @property
    def whole(self) -> bool:
        """Whether the projection makes these heads and nothing else, in order."""
        return self.first == tuple(range(0, self.channels, self.width))


@dataclass(frozen=True, kw_only=True)
class AttentionPlace:
    """One attention module.

    Attributes:
        shape: its sizes.
        query, key, value: the projections that make them; None where they are more than a plain projection.
        output: the module that reads what attention gives, below the attention module; None if unknown.
        turns: whether its positions are rotary.
        rotary: the name of the argument that hands it cosines and sines; None if it is handed none.
        pairs: how they lie.
        more: what its attention function is given beside a softmax's arguments, where it gives something else than
            a softmax would.
        mask: whether the mask at the interface is the one that the module is given.
        once: whether each run of it in a forward pass has a layer of the cache that can be told.
    """

    shape: AttentionShape
    query: Heads | None = None
    key: Heads | None = None
    value: Heads | None = None
    output: str | None = None
    turns: bool = False
    rotary: str | None = None
    pairs: Pairs | None = None
    more: str | None = None
    mask: bool = True
    once: bool = True


def to_config(places: Mapping[str, AttentionPlace]) -> list[dict[str, Any]]:
    """For config.json: each distinct place once, with the modules that are like it."""
    alike: dict[AttentionPlace, list[str]] = {}
    for name, place in places.items():
        alike.setdefault(place, []).append(name)
    return [{"modules": names, **dataclasses.asdict(place)} for place, names in alike.items()]


def from_config(entries: Iterable[Mapping[str, Any]]) -> dict[str, AttentionPlace]:
    """What `to_config` wrote, by module."""
    found: dict[str, AttentionPlace] = {}
    for entry in entries:
        fields = {name: value for name, value in entry.items() if name != "modules"}
        fields["shape"] = AttentionShape(**fields["shape"])
        for part in ("query", "key", "value"):
            if fields[part] is not None:
                fields[part] = Heads(**{**fields[part], "first": tuple(fields[part]["first"])})
        found |= dict.fromkeys(entry["modules"], AttentionPlace(**fields))
    return found


def hidden_in(given: Mapping[str, Any]) -> torch.Tensor:
    """What an attention layer reads: the first (B, T, C) that it is given."""
    return next(one for one in given.values() if isinstance(one, torch.Tensor) and one.dim() == 3)

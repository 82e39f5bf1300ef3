"""What an exact change does by itself, while nothing is rounded: nothing, if it is exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from studfinder.errors import StudfinderError, WriteFailed
from studfinder.experiments.quantize_recipes import Recipe, RecipeWork
from studfinder.quantizers import Rebalance, Scheme, Workbench, quantized
from studfinder.records import Cell, Table
from studfinder.stats import ratio_interval


@dataclass(frozen=True, kw_only=True)
class Unrounded:
    """A method that rounds nothing, for `quantized` with a transform alone."""

    scheme: Scheme = field(default_factory=lambda: Scheme(block="channel"))
    calibrated: bool = False

    def run(self, bench: Workbench) -> None:
        """Leave every matrix as it stands."""


@dataclass(frozen=True)
class Alone:
    """A change that was made by itself: which windows' logits are bit-equal, and by window the KL, summed over tokens,
    and the tokens; or why it could not be made."""

    change: Recipe
    equal: list[bool]
    kl: list[float]
    tokens: list[int]
    refused: str


def made_alone(work: RecipeWork, changes: Sequence[Recipe]) -> list[Alone]:
    """Every change by itself, a step each."""
    return [
        Alone(one, **work.bench.once(f"unrounded {one.label} {one.key}", partial(_measured, work, one)))
        for one in changes
    ]


def _measured(work: RecipeWork, one: Recipe) -> dict[str, Any]:
    original = work.original  # read before anything is changed
    try:
        with quantized(work.lm, Unrounded(), transforms=one.transforms):
            equal, kl = original.equal(work.lm), original.kl(work.lm)
            return {"equal": equal, "kl": kl.sums.tolist(), "tokens": kl.tokens.tolist(), "refused": ""}
    except WriteFailed:
        raise
    except StudfinderError as error:
        return {"equal": [], "kl": [], "tokens": [], "refused": str(error)}


def worst_rebalancing(found: Sequence[Alone]) -> str:
    """How exact the least exact rebalancing is, as measured."""
    counts = [
        (sum(a.equal), len(a.equal)) for a in found if isinstance(a.change.transforms[0], Rebalance) and not a.refused
    ]
    if not counts:
        return ""
    equal, windows = min(counts)
    return (
        f"Rebalancing is {'' if equal == windows else 'not '}exact: with nothing rounded the logits are bit-equal in "
        f"{equal} of {windows} windows, in the worst of {len(counts)} cases."
    )


def alone_table(name: str, found: Sequence[Alone]) -> Table:
    """The changes by themselves."""
    rows: list[tuple[Cell, ...]] = []
    for one in found:
        counted = "does not fit" if one.refused else f"{sum(one.equal)} of {len(one.equal)}"
        kl = None if one.refused else ratio_interval(np.array(one.kl), np.array(one.tokens))
        rows.append((one.change.label, counted, kl))
    return Table(
        title=f"{name}: the changes alone, nothing rounded",
        columns=("change", "windows with bit-equal logits", "KL, nats per token"),
        rows=tuple(rows),
        note="Our proof text. Sorting and splitting change the order of a sum; a rotation stores other numbers in the "
        "model's own type.",
    )

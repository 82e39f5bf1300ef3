"""What must be kept of a matrix with a super weight: the weight, or the column that meets its input?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from studfinder.experiments.experiment import Outcome
from studfinder.experiments.fidelity import Divergence, over_draws
from studfinder.experiments.quantize_keeps import COLUMNS, OTHER_COLUMNS, WEIGHTS, other_columns
from studfinder.experiments.quantize_recipes import CAVEAT
from studfinder.models import LM
from studfinder.quantizers import HoldOut, hold_out
from studfinder.records import Comparison, SuperWeight, Table


@dataclass(frozen=True)
class KeptPart:
    """A part that was quantised with something of it kept, and the KL."""

    part: str
    what: str
    kl: Divergence


def keeps_of(lm: LM, weights: Sequence[SuperWeight], *, draws: int, seed: int) -> dict[str, HoldOut]:
    """The weights, their columns, and several draws of as many other columns."""
    keeps = {WEIGHTS: hold_out(weights), COLUMNS: hold_out(weights, columns=True)}
    for draw in range(draws):
        keeps[f"{OTHER_COLUMNS}, draw {draw + 1}"] = hold_out(other_columns(lm, weights, seed=seed + draw))
    return keeps


def add_kept(
    outcome: Outcome, name: str, kept: list[KeptPart], found: dict[str, Divergence], whole: Divergence, median: float
) -> None:
    """What keeping some numbers of the matrices with super weights wins."""
    if not kept:
        outcome.notes.append(f"{name}: no super weight is proven, so nothing of a matrix was kept by itself.")
        return
    rows: list[tuple[Any, ...]] = []
    for part in dict.fromkeys(one.part for one in kept):
        plain = whole if part == "everything" else found[part]
        rows.append((part, "nothing", plain.interval(), None))
        own = [one for one in kept if one.part == part]
        for one in own:
            change = Comparison(kind="difference", interval=(one.kl - plain).interval())
            rows.append((part, one.what, one.kl.interval(), change))
        by_what = {one.what: one.kl for one in own}
        others = over_draws([kl for what, kl in by_what.items() if what.startswith(OTHER_COLUMNS)])
        gain = (others - by_what[COLUMNS]).interval()
        says = "wins" if gain.low > 0 else "loses" if gain.high < 0 else "wins nothing, clearly,"
        outcome.notes.append(
            f"{name}: of {part}, keeping the columns that meet the super weights' inputs leaves "
            f"{by_what[COLUMNS].value:.3g} of {plain.value:.3g} nats, the super weights alone "
            f"{by_what[WEIGHTS].value:.3g}, as many other columns {others.value:.3g}; "
            f"against these it {says} {gain}." + f" The median matrix costs {median:.3g}." * (part != "everything")
        )
    outcome.tables.append(
        Table(
            title=f"{name}: what to keep of the matrices with super weights",
            columns=("quantised", "kept in full precision", "KL", "- nothing kept"),
            rows=tuple(rows),
            note=f"A column is everything in a matrix that one input is multiplied with. {CAVEAT}",
        )
    )

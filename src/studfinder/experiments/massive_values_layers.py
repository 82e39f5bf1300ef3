"""How early massive values appear (Jin et al. 2025, arXiv 2502.01563, "from the first layers", appendix).

What it asks: in which layers do Q and K hold massive values, from which layer on, and does RoPE put them there? How:
M[h,d] over twelve prompts, entries above lambda times their head's mean, layer by layer, for Q, K and V and for Q and K
before RoPE. What to look at: the first layer whose count exceeds what heads of random direction would give, and the
difference before and after RoPE.

The paper shows heat maps of layers 1, 2 and 10 (counted from 1), before and after RoPE, and counts nothing. RoPE turns
each pair of dims and keeps the pair's norm, so that the larger of the two changes by a factor of sqrt(2) at most:
massive values must be there before it, and that the counts hardly change is no evidence about why they arose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.experiments.norms import (
    NAMES,
    LambdaConfig,
    Maps,
    chance_above,
    counts,
    ratios,
    read_maps,
    resampled,
    total,
)
from studfinder.models import LM
from studfinder.records import Cell, Chart, Comparison, Interval, Plot, Series, Table, point

EXPERIMENT = Experiment(
    name="massive-values/layers",
    paper="2502.01563",
    shows="appendix, layers 1, 2 and 10",
    summary="From which layer on do Q and K hold massive values, and does RoPE put them there?",
    needs="about 30 seconds with smollm2 on two cores",
    presets={"cpu": LambdaConfig()},
)


@dataclass(frozen=True)
class _Tensor:
    """Massive entries and largest ratios of one tensor by layer, and what chance would give in one."""

    layers: tuple[int, ...]
    heads: int
    massive: list[int]
    largest: list[float]
    chance: float

    @classmethod
    def of(cls, maps: Maps, tensor: str, lam: float) -> _Tensor:
        norm_LHD = maps.norm_LHD(tensor)
        _, heads, dims = norm_LHD.shape
        largest_L = ratios(norm_LHD).max(axis=(1, 2))
        chance = chance_above(dims, lam) * heads * dims
        return cls(maps.layers[tensor], heads, counts(norm_LHD, lam).tolist(), largest_L.tolist(), chance)

    @property
    def first(self) -> int | None:
        """The first layer with more massive entries than heads of random direction would give, if there is one."""
        found = zip(self.layers, self.massive, strict=True)
        return next((layer for layer, n in found if n > max(0.5, self.chance)), None)

    def at(self, layer: int) -> tuple[Cell, Cell]:
        """Entries and largest ratio in a layer."""
        place = self.layers.index(layer) if layer in self.layers else None
        return (None, None) if place is None else (self.massive[place], self.largest[place])


def run(bench: Bench, lm: LM) -> Outcome:
    """Counts by layer, before and after RoPE."""
    return bench.outcome(partial(_outcome, bench, lm))


def _outcome(bench: Bench, lm: LM) -> Outcome:
    lam, maps = bench.config.lam, read_maps(lm, bench.config.limit, bench.progress)
    seen = {tensor: _Tensor.of(maps, tensor, lam) for tensor in maps.tensors}
    totals = resampled(maps, {tensor: partial(total, tensor, lam) for tensor in seen})
    both = [one for one in ("query", "key") if maps.layers.get(f"{one}.pre_rope", 0) == maps.layers.get(one)]
    by_rope = resampled(maps, {tensor: partial(_by_rope, tensor, lam) for tensor in both}) if both else {}
    changes = {tensor: Comparison(kind="difference", interval=found) for tensor, found in by_rope.items()}
    tables = [_totals_table(lam, seen, totals, changes), _layers_table(seen)]
    return Outcome(tables, _notes(seen, totals, changes), [_chart(lam, seen)])


def _by_rope(tensor: str, lam: float, norms: Mapping[str, np.ndarray]) -> np.ndarray:
    return total(tensor, lam, norms) - total(f"{tensor}.pre_rope", lam, norms)


def _totals_table(
    lam: float, seen: Mapping[str, _Tensor], totals: Mapping[str, Interval], changes: Mapping[str, Comparison]
) -> Table:
    rows = []
    for tensor, of in seen.items():
        layers, some = len(of.layers), sum(n > 0 for n in of.massive)
        rows.append((NAMES[tensor], totals[tensor], of.chance * layers, of.first, some, layers, changes.get(tensor)))
    return Table(
        title=f"massive values (lambda {lam:g}) over all layers",
        columns=("tensor", "massive", "by chance", "first layer", "layers with any", "layers", "after - before RoPE"),
        rows=tuple(rows),
        note="Intervals: prompts resampled. By chance: if every head held one vector of random direction. First layer: "
        'the first with more than that; layers count from 0. The paper says "from layer 1", counted from 1.',
    )


def _layers_table(seen: Mapping[str, _Tensor]) -> Table:
    layers = sorted({layer for of in seen.values() for layer in of.layers})
    return Table(
        title="by layer",
        columns=("layer", *(head for one in seen for head in (NAMES[one], f"{NAMES[one]}: largest"))),
        rows=tuple((layer, *(cell for of in seen.values() for cell in of.at(layer))) for layer in layers),
        note="Massive entries, and the largest M over the mean of its head.",
    )


def _notes(seen: Mapping[str, _Tensor], totals: Mapping[str, Interval], changes: Mapping[str, Comparison]) -> list[str]:
    last = {
        tensor: of.first for tensor, of in seen.items() if tensor.removesuffix(".pre_rope") not in {*seen} - {tensor}
    }
    firsts = (f"{NAMES[one]} {'never' if first is None else f'from layer {first}'}" for one, first in last.items())
    notes = [f"more massive values than by chance: {', '.join(firsts)} (layers count from 0)."]
    for tensor, change in changes.items():
        before = totals[f"{tensor}.pre_rope"].value
        says = "RoPE changes that count beyond what prompts vary" if change.changed else "no clear change by RoPE"
        notes.append(
            f"{NAMES[tensor]} holds {before:.0f} massive values before RoPE and {before + change.interval.value:.0f} "
            f"after ({change:+.0f}): {says}."
        )
    return notes


def _chart(lam: float, seen: Mapping[str, _Tensor]) -> Chart:
    """Massive entries a head, and the largest ratio, by layer; dotted before RoPE."""

    def series(values: Mapping[str, list[float]]) -> tuple[Series, ...]:
        looks = {
            one: {"dotted": one.endswith("pre_rope"), "like": NAMES[one.removesuffix(".pre_rope")]} for one in seen
        }
        return tuple(
            Series(name=NAMES[one], x=seen[one].layers, points=tuple(map(point, found)), **looks[one])
            for one, found in values.items()
        )

    above = series({tensor: [n / of.heads for n in of.massive] for tensor, of in seen.items()})
    most = series({tensor: of.largest for tensor, of in seen.items()})
    return Chart(
        name="layers",
        plots=(
            Plot(kind="lines", series=above, x="layer", title=f"entries a head above {lam:g} x its mean"),
            Plot(kind="lines", series=most, x="layer", title="largest M / its head's mean", none=lam),
        ),
    )

"""How early massive values appear (Jin et al. 2025, arXiv 2502.01563, "from the first layers", appendix).

What it asks: in which layers do Q and K hold massive values, from which layer on, and does RoPE put them there? How:
M[h,d] over twelve prompts, entries above lambda times their head's mean, layer by layer, for Q, K and V and for Q and K
before RoPE. What to look at: the share of the first layers' heads that hold one, against that of heads of random
direction and of V, and the difference before and after RoPE.

The paper shows heat maps of layers 1, 2 and 10 (counted from 1), before and after RoPE, and counts nothing. RoPE turns
each pair of dims and keeps the pair's norm, so that the larger of the two changes by a factor of sqrt(2) at most:
massive values must be there before it, and that the counts hardly change is no evidence about why they arose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from studfinder.experiments.norms import (
    LETTERS,
    LambdaConfig,
    Maps,
    chance_above,
    chance_holding,
    counts,
    holding,
    massive_total,
    norm_ratios,
    read_maps,
    resampled,
)
from studfinder.models import LM
from studfinder.records import Cell, Chart, Claim, ClaimResult, Comparison, Interval, Plot, Series, Table, point
from studfinder.stats import share_interval
from studfinder.studies import judged
from studfinder.studies.experiment import Bench, Experiment, Outcome

FIRST = Claim(
    key="massive-values/first-layers",
    says="Massive values of Q and K begin in the first layers.",
    decides="the share of the first two layers' heads of Q and K that hold one less that of heads of random direction",
    published="heat maps of layers 1 and 2 (counted from 1); no number",
)
ROPE = Claim(
    key="massive-values/rope-puts",
    says="It is the rotation that makes entries of Q and K massive: before RoPE they are not.",
    decides="the share of the massive values after RoPE that were not there before it, net",
    published="RoPE is called their cause; models with it have them, models without it do not. A rotation keeps the "
    "norm of a pair of dims, so this says where they are, not what training with RoPE makes of them",
    paper_effect=1.0,
)
EXPERIMENT = Experiment(
    name="massive-values/layers",
    paper="2502.01563",
    shows="appendix, layers 1, 2 and 10",
    summary="From which layer on do Q and K hold massive values, and does RoPE put them there?",
    needs="about 30 seconds with smollm2 on two cores",
    presets={"cpu": LambdaConfig()},
    claims=(FIRST, ROPE),
)
_FIRST = 2
"""The layers that the paper shows as its first."""


def run(bench: Bench, lm: LM) -> Outcome:
    """Counts by layer, before and after RoPE."""
    return bench.outcome(partial(_outcome, bench, lm))


def _outcome(bench: Bench, lm: LM) -> Outcome:
    own, maps = bench.config, read_maps(lm, bench.config.limit, bench.progress)
    lams = {tensor: own.lambda_of(maps.squares[tensor].shape[-1]) for tensor in maps.tensors}
    totals = resampled(maps, {tensor: partial(massive_total, tensor, lam) for tensor, lam in lams.items()})
    both = [one for one in ("query", "key") if maps.layers.get(f"{one}.pre_rope", 0) == maps.layers.get(one)]
    by_rope = resampled(maps, {tensor: partial(_by_rope, {tensor: lams[tensor]}) for tensor in both}) if both else {}
    changes = {tensor: Comparison(kind="difference", interval=found) for tensor, found in by_rope.items()}
    massive = {tensor: counts(maps.norm_LHD(tensor), lam).tolist() for tensor, lam in lams.items()}
    largest = {tensor: norm_ratios(maps.norm_LHD(tensor)).max(axis=(1, 2)).tolist() for tensor in maps.tensors}
    firsts: dict[str, int | None] = {}
    rows: list[tuple[Cell, ...]] = []
    for tensor, layers in ((tensor, maps.layers[tensor]) for tensor in maps.tensors):
        heads, dims = maps.squares[tensor].shape[2:]
        chance = chance_above(dims, lams[tensor]) * heads * dims
        found = zip(layers, massive[tensor], strict=True)
        firsts[tensor] = next((layer for layer, n in found if n > max(0.5, chance)), None)
        some = sum(n > 0 for n in massive[tensor])
        start = (LETTERS[tensor], lams[tensor], totals[tensor], chance * len(layers), firsts[tensor])
        rows.append((*start, some, len(layers), changes.get(tensor)))
    table = Table(
        title="massive values over all layers",
        columns=("tensor", "lambda", "massive", "by chance", "first", "with any", "layers", "after - before RoPE"),
        rows=tuple(rows),
        note="Intervals: prompts resampled. By chance: if every head held one vector of random direction. First: the "
        'first layer with more than that; layers count from 0. The paper says "from layer 1", counted from 1.',
    )
    return Outcome(
        [table, _layers_table(maps, massive, largest)],
        _notes(firsts, totals, changes),
        [_chart(max(lams.values()), maps, massive, largest)],
        claims=[_first(maps, lams), _rope(maps, {t: lams[t] for t in both})],
    )


def _first(maps: Maps, lams: Mapping[str, float]) -> ClaimResult:
    stage = "" if "query" in lams else ".pre_rope"  # all that some models show
    own = {one: holding(maps.norm_LHD(one)[:_FIRST], lams[one]) for one in (f"query{stage}", f"key{stage}", "value")}
    value, query = own.pop("value"), f"query{stage}"
    chance = chance_holding(maps.squares[query].shape[-1], lams[query])
    hits, heads = int(sum(of.sum() for of in own.values())), sum(of.size for of in own.values())
    share = share_interval(hits, heads, what="heads of the first two layers")
    return judged(
        FIRST,
        replace(share, value=share.value - chance, low=share.low - chance, high=share.high - chance),
        effect=share,
        control=chance,
        items=f"{heads} heads of Q and K",
        why=f"of V {int(value.sum())} of {value.size} heads hold one there",
        cost="a model with more heads in a layer, in a minute or two; every one of this model's was looked at",
    )


def _rope(maps: Maps, lams: Mapping[str, float]) -> ClaimResult:
    if not lams:
        return judged(ROPE, None, why="what is before RoPE and after it is not both seen in this model")
    after, before = (
        sum(int(counts(maps.norm_LHD(one + stage), lam).sum()) for one, lam in lams.items())
        for stage in ("", ".pre_rope")
    )
    found = resampled(maps, {"net": partial(_net, lams)})["net"]
    return judged(
        ROPE,
        found if after else None,
        effect=f"{after} after",
        control=f"{before} before",
        items=f"{len(maps.squares['query'])} prompts",
        why="" if after else "none is massive after it",
    )


def _net(lams: Mapping[str, float], norms: Mapping[str, np.ndarray]) -> np.ndarray:
    after = sum((massive_total(tensor, lam, norms) for tensor, lam in lams.items()), start=np.zeros(1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(_by_rope(lams, norms) / after)


def _by_rope(lams: Mapping[str, float], norms: Mapping[str, np.ndarray]) -> np.ndarray:
    """How many more there are after it."""
    each = (massive_total(t, lam, norms) - massive_total(f"{t}.pre_rope", lam, norms) for t, lam in lams.items())
    return sum(each, start=np.zeros(1))


def _layers_table(maps: Maps, massive: Mapping[str, list[int]], largest: Mapping[str, list[float]]) -> Table:
    cells: dict[tuple[str, int], Sequence[Cell]] = {}
    for tensor, layers in maps.layers.items():
        for place, layer in enumerate(layers):
            cells[tensor, layer] = (massive[tensor][place], largest[tensor][place])
    rows = [
        (layer, *(cell for tensor in maps.tensors for cell in cells.get((tensor, layer), (None, None))))
        for layer in sorted({layer for _, layer in cells})
    ]
    return Table(
        title="by layer",
        columns=("layer", *(head for one in maps.tensors for head in (LETTERS[one], f"{LETTERS[one]}: largest"))),
        rows=tuple(rows),
        note="Massive entries, and the largest M over the mean of its head.",
    )


def _notes(
    firsts: Mapping[str, int | None], totals: Mapping[str, Interval], changes: Mapping[str, Comparison]
) -> list[str]:
    last = {one: first for one, first in firsts.items() if one.removesuffix(".pre_rope") not in {*firsts} - {one}}
    said = (f"{LETTERS[one]} {'never' if first is None else f'from layer {first}'}" for one, first in last.items())
    notes = [f"more massive values than by chance: {', '.join(said)} (layers count from 0)."]
    for tensor, change in changes.items():
        before = totals[f"{tensor}.pre_rope"].value
        says = "RoPE changes that count beyond what prompts vary" if change.changed else "no clear change by RoPE"
        notes.append(
            f"{LETTERS[tensor]} holds {before:.0f} massive values before RoPE and {before + change.interval.value:.0f} "
            f"after ({change:+.0f}): {says}."
        )
    return notes


def _chart(lam: float, maps: Maps, massive: Mapping[str, list[int]], largest: Mapping[str, list[float]]) -> Chart:
    """Massive entries a head, and the largest ratio, by layer; dotted before RoPE."""
    above, most = [], []
    for tensor in maps.tensors:
        own, heads = tensor.removesuffix(".pre_rope"), maps.squares[tensor].shape[2]
        look: Any = {"name": LETTERS[tensor], "x": maps.layers[tensor], "dotted": own != tensor, "like": LETTERS[own]}
        above.append(Series(points=tuple(point(n / heads) for n in massive[tensor]), **look))
        most.append(Series(points=tuple(map(point, largest[tensor])), **look))
    return Chart(
        name="layers",
        plots=(
            Plot(kind="lines", series=tuple(above), x="layer", title=f"entries a head above {lam:.3g} x its mean"),
            Plot(kind="lines", series=tuple(most), x="layer", title="largest M / its head's mean", none=lam),
        ),
    )

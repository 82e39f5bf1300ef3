"""Does keeping what the census finds in 16 bits pay beside smaller groups at equal bits? (ours)

The matrices of the blocks are rounded to nearest in groups, and single numbers are held out of their group and keep
their value, for 48 bits each (16 and the 32 of its place): a few, and as many as a plain format with smaller groups
costs. Which: those of the largest predicted KL at zero (the census); of the largest F, CherryQ's impact (2404.02837);
of the largest F times squared rounding error, as SqueezeLLM (2306.07629) weighs it; of the largest |w|; any. F is from
our prompts, and the KL is taken on our proof text, which chose nothing.

Look at: whether any order beats the smaller groups at equal bits, and by how much the orders differ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from studfinder.detectors.census import Spot, census
from studfinder.edits import Weights
from studfinder.errors import StudfinderError
from studfinder.experiments.census_rankings import as_much, at_random, by_impact, by_magnitude, rounded_to, to_zero
from studfinder.models import LM
from studfinder.quantizers import RTN, HoldOut, Scheme, hold_out, targets
from studfinder.quantizers.apply import bench_for
from studfinder.records import Cell, Chart, Plot, Series, Table, point
from studfinder.records.config import option
from studfinder.studies import KL, GridScores, ModelVariant
from studfinder.studies.experiment import Bench, Experiment, Outcome, StudyConfig
from studfinder.studies.rounding import CAVEAT, Rounding
from studfinder.texts import default_prompts, encode


@dataclass(frozen=True, kw_only=True)
class CensusKeepConfig(StudyConfig):
    """What is rounded, how much is kept, and on how much text it is judged."""

    draws: int = option(1, help="Labels drawn at each token of our prompts.", least=1)
    element: str = option("int4", help="What numbers are rounded to.")
    block: int = option(64, help="Inputs that share a scale.", least=2)
    smaller: int = option(48, help="Inputs that share one in the plain format of the same bits.", least=2)
    few: int = option(200, help="How many numbers are kept where few are.", least=1)
    pieces: int = option(8, help="Pieces of our proof text that judge.", least=2)


EXPERIMENT = Experiment(
    name="super-weight/census-keep",
    paper="-",
    shows="ours",
    summary="Does keeping what the census finds in 16 bits pay beside smaller groups at equal bits?",
    needs="about 15 minutes and 4 GB with smollm2 in float32 on one thread (estimated)",
    presets={"cpu": CensusKeepConfig()},
)
_ORDERS = {
    "census": "the largest predicted KL at zero",
    "impact": "the largest F (CherryQ)",
    "rounded": "the largest F x rounding error",
    "size": "the largest |w|",
    "random": "any",
}


def run(bench: Bench, lm: LM) -> Outcome:
    """Plain groups, smaller ones, and the plain ones with numbers kept."""
    own: CensusKeepConfig = bench.config
    rounding = Rounding(bench, lm)
    base, smaller = (_rtn(rounding, own.element, block) for block in (own.block, own.smaller))
    numbers = sum(target.weight(lm).numel() for target in targets(lm))
    cheaper, dearer = (bench_for(lm, method).planned for method in (base, smaller))
    many = int((dearer - cheaper) * numbers / 48)
    if many < 1:
        raise StudfinderError(
            f"groups of {own.smaller} cost no more than groups of {own.block}",
            expected=f"--set smaller=N with N below {own.block}",
        )
    chosen = bench.once("orders", lambda: _chosen(bench, lm, base.scheme, max(many, own.few)))
    plain = rounding.variant(f"groups of {own.block}, nothing", base)
    beside = rounding.variant(f"groups of {own.smaller}, nothing", smaller)
    kept: dict[str, tuple[int, ModelVariant]] = {}
    for order, words in _ORDERS.items():
        for count in dict.fromkeys((own.few, many)):
            label = f"groups of {own.block}, {count:,}: {words}"
            keep = _held(lm, chosen[order], count)
            kept[label] = count, rounding.variant(label, base, keep=keep, kept=words, family=plain.label)
    scored = rounding.scored([plain, beside, *(variant for _, variant in kept.values())], [])
    counts = {label: count for label, (count, _) in kept.items()}
    notes = [_note(scored, label, beside.label, many / numbers) for label, count in counts.items() if count == many]
    return Outcome([_table(scored, counts, plain.label, beside.label)], notes, [_chart(scored)], remarks=[CAVEAT])


def _rtn(rounding: Rounding, element: Any, block: int) -> RTN:
    return RTN(scheme=rounding.scheme(Scheme(element=element, block=block, zero="integer")))


def _chosen(bench: Bench, lm: LM, scheme: Scheme, most: int) -> dict[str, list[list[Any]]]:
    """By order the first numbers, as runs of flat indices: [[parameter, [index, ...]], ...], best first."""
    own: CensusKeepConfig = bench.config
    known = {target.name for target in targets(lm)}
    prompts = encode(lm, default_prompts())[0]
    with TemporaryDirectory() as folder:
        place = Path(folder) / "map.safetensors"
        census(lm, prompts, draws=own.draws, top=1, map=place, seed=own.seed, progress=bench.progress)
        found = {
            "census": by_impact(lm, place, most, to_zero),
            "impact": by_impact(lm, place, most, as_much),
            "rounded": by_impact(lm, place, most, rounded_to(scheme)),
            "size": by_magnitude(lm, most),
            "random": at_random(lm, most, own.seed),
        }
    return {order: _runs(lm, [spot for spot in spots if spot[0] in known]) for order, spots in found.items()}


def _runs(lm: LM, spots: Sequence[Spot]) -> list[list[Any]]:
    shapes = {name: tuple(one.shape) for name, one in lm.model.named_parameters()}
    runs: list[list[Any]] = []
    for name, index in spots:
        if not runs or runs[-1][0] != name:
            runs.append([name, []])
        runs[-1][1].append(int(np.ravel_multi_index(index, shapes[name])))
    return runs


def _held(lm: LM, runs: Sequence[Sequence[Any]], count: int) -> HoldOut:
    """The first so many of an order."""
    by_name: dict[str, list[int]] = defaultdict(list)
    left = count
    for name, flat in runs:
        by_name[name] += flat[:left]
        left -= min(left, len(flat))
        if not left:
            break
    shapes = {name: tuple(lm.model.get_parameter(name).shape) for name in by_name}
    every = {name: np.stack(np.unravel_index(flat, shapes[name]), axis=-1).tolist() for name, flat in by_name.items()}
    return hold_out([Weights(parameter=name, entries=tuple(map(tuple, own))) for name, own in every.items()])


def _table(scored: GridScores, counts: dict[str, int], plain: str, beside: str) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for one in scored.tried():
        against = [None if one.label == other else scored.change(KL, one.label, other) for other in (plain, beside)]
        value = scored.scores[one.label][KL].interval
        rows.append((one.label, counts.get(one.label, 0), scored.bits(one.label), value, *against))
    columns = ("what is kept", "numbers", "bits per weight", "KL", f"minus {plain}", f"minus {beside}")
    note = (
        "KL in nats per token on our proof text, which chose nothing; differences are paired, windows resampled. A "
        f"number that is kept costs 48 bits. {CAVEAT}"
    )
    return Table(title="numbers kept in 16 bits, at true bits", columns=columns, rows=tuple(rows), note=note)


def _note(scored: GridScores, label: str, beside: str, share: float) -> str:
    change = scored.change(KL, label, beside)
    assert change is not None
    lower, higher = change.interval.high < 0, change.interval.low > 0
    verdict = "its KL is lower" if lower else "its KL is higher" if higher else "their KLs are not told apart"
    return f"{label} ({share:.2%} of the weights), at equal bits with {beside}: {verdict}, {change.interval} nats."


def _chart(scored: GridScores) -> Chart:
    rows = [one.label for one in scored.tried()]
    series = Series(name="KL", points=tuple(point(scored.scores[label][KL].interval) for label in rows))
    return Chart(name="kept", plots=(Plot(kind="dots", rows=tuple(rows), series=(series,), x="KL, nats per token"),))

"""Is keeping numbers in 16 bits worth its bits, beside plain formats at equal true bits? (ours)

The matrices of the blocks are rounded to nearest in groups, and single numbers are held out of their group and keep
their value, for 48 bits each (16 and the 32 of its place): a few, as many as a plain format with smaller groups costs,
and further shares. Which: those of the largest predicted KL at zero (the census); of the largest F, CherryQ's impact
(2404.02837); of the largest F times squared rounding error, as SqueezeLLM (2306.07629) weighs it; of the largest |w|;
any; and what a scan proves: the super weights (which cost a millionth of a bit, so that the plain format itself is the
one at equal bits) and their columns, each beside as many others. F is from our prompts, and the KL is taken on our
proof text, which chose nothing. Other plain formats show what the same bits buy, and what a plain format needs to come
as close to the original.

Look at: whether any order beats the best plain format that costs no more, and by how much the orders differ.
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
from studfinder.experiments.quantize_keeps import COLUMNS, OTHER_COLUMNS, OTHERS, WEIGHTS, other_columns
from studfinder.experiments.weights import (
    SuperWeightConfig,
    controls_of,
    load_findings,
    named,
    super_weights_of,
    unproven,
)
from studfinder.models import LM
from studfinder.quantizers import RTN, HoldOut, Scheme, hold_out, targets
from studfinder.quantizers.apply import bench_for
from studfinder.records import Cell, Chart, Claim, ClaimResult, Plot, Series, Table, point
from studfinder.records.config import option
from studfinder.studies import KL, GridScores, ModelVariant, judged
from studfinder.studies.experiment import Bench, Experiment, Outcome
from studfinder.studies.rounding import CAVEAT, Rounding, block_of
from studfinder.texts import default_prompts, encode

_PROVEN = Claim(
    key="quantize/keep-proven",
    says="Keeping the proven super weights in 16 bits pays at equal true bits.",
    decides="KL with super weights kept minus KL with as many others of their matrices kept, nats per token",
    kind="less",
    published="2411.07191: with one super weight kept, rounding to nearest becomes competitive",
)
_CHOSEN = Claim(
    key="quantize/keep-chosen",
    says="Keeping the numbers whose rounding is predicted to cost most pays at equal true bits.",
    decides="KL with them kept minus KL of the best plain format that costs no more bits, nats per token",
    kind="less",
    published="2306.07629: 0.45 % of the weights kept take Llama-7B at 3 bits from 7.75 to 7.56 (C4), for 0.24 bits",
)


@dataclass(frozen=True, kw_only=True)
class CensusKeepConfig(SuperWeightConfig):
    """What is rounded, how much is kept, and on how much text it is judged."""

    draws: int = option(1, help="Labels drawn at each token of our prompts.", least=1)
    element: str = option("int4", help="What numbers are rounded to.")
    block: int = option(64, help="Inputs that share a scale.", least=2)
    smaller: int = option(48, help="Inputs that share one in the plain format of the same bits.", least=2)
    formats: tuple[str, ...] = option("int4:32,int5:128,int5:64", help="Other plain formats.", commas=True)
    shares: tuple[float, ...] = option(
        "0.0005,0.005,0.01", help="Shares of all numbers that are kept by F x rounding error.", commas=True, above=0
    )
    few: int = option(200, help="How many numbers are kept where few are.", least=1)
    pieces: int = option(8, help="Pieces of our proof text that judge.", least=2)


EXPERIMENT = Experiment(
    name="super-weight/census-keep",
    paper="2411.07191",
    shows="ours",
    summary="Is keeping numbers in 16 bits worth its bits, beside plain formats at equal true bits?",
    needs="about 8 minutes and 4 GB with smollm2 in float32 on one thread, after a scan (estimated)",
    presets={"cpu": CensusKeepConfig()},
    claims=(_PROVEN, _CHOSEN),
    spread=True,
)
_ORDERS = {
    "census": "the largest predicted KL at zero",
    "impact": "the largest F (CherryQ)",
    "rounded": "the largest F x rounding error",
    "size": "the largest |w|",
    "random": "any",
}


def run(bench: Bench, lm: LM) -> Outcome:
    """Plain groups, other plain formats, and the plain groups with numbers kept."""
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
    further = [int(share * numbers) for share in own.shares]
    chosen = bench.once("orders", lambda: _chosen(bench, lm, base.scheme, max(many, own.few), max(further, default=0)))
    plain = rounding.variant(f"groups of {own.block}, nothing", base)
    beside = [rounding.variant(f"groups of {own.smaller}, nothing", smaller)]
    for name in own.formats:
        element, _, block = name.partition(":")
        method = _rtn(rounding, element, block_of(block))
        beside.append(rounding.variant(f"{element}, groups of {block}, nothing", method))
    kept: dict[str, tuple[int, ModelVariant]] = {}

    def keep(count: int, words: str, held: HoldOut) -> None:
        label = f"groups of {own.block}, {count:,}: {words}"
        kept[label] = count, rounding.variant(label, base, keep=held, kept=words, family=plain.label)

    for order, words in _ORDERS.items():
        for count in dict.fromkeys((own.few, many, *(further if order == "rounded" else ()))):
            keep(count, words, _held(lm, chosen[order], count))
    here = own.findings or load_findings(bench, lm).proven
    weights, findings = super_weights_of(bench, lm) if here else ((), None)
    if findings is not None:
        others, columns = controls_of(lm, weights, findings), other_columns(lm, weights, seed=own.seed)
        for words, held in (
            (WEIGHTS, hold_out(weights)),
            (OTHERS, hold_out(others)),
            (COLUMNS, hold_out(weights, columns=True)),
            (OTHER_COLUMNS, hold_out(columns)),
        ):
            keep(sum(int(mask.sum()) for mask in bench_for(lm, base, keep=held).held.values()), words, held)
    scored = rounding.scored([plain, *beside, *(variant for _, variant in kept.values())], [])
    counts = {label: count for label, (count, _) in kept.items()}
    formats = [one.label for one in (plain, *beside) if not scored.refused(one.label)]
    notes = [_note(scored, label, formats, count / numbers) for label, count in counts.items() if count != own.few]
    claims = _judged(scored, plain.label, formats, many, unproven(weights))
    tables = [_table(scored, counts, plain.label, beside[0].label, named(weights))]
    return Outcome(tables, notes, [_chart(scored)], remarks=[CAVEAT, _STRADDLED], claims=claims)


def _rtn(rounding: Rounding, element: Any, block: int) -> RTN:
    return RTN(scheme=rounding.scheme(Scheme(element=element, block=block, zero="integer")))


def _chosen(bench: Bench, lm: LM, scheme: Scheme, most: int, further: int) -> dict[str, list[list[Any]]]:
    """By order the first numbers (by F x rounding error, `further` of them), as runs of flat indices, best first:
    [[parameter, [index, ...]], ...]."""
    own: CensusKeepConfig = bench.config
    known = {target.name for target in targets(lm)}
    prompts = encode(lm, default_prompts())[0]
    with TemporaryDirectory() as folder:
        place = Path(folder) / "map.safetensors"
        census(lm, prompts, draws=own.draws, top=1, map=place, seed=own.seed, progress=bench.progress)
        found = {
            "census": by_impact(lm, place, most, to_zero),
            "impact": by_impact(lm, place, most, as_much),
            "rounded": by_impact(lm, place, max(most, further), rounded_to(scheme)),
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


def _table(scored: GridScores, counts: dict[str, int], plain: str, beside: str, weights: str) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for one in scored.tried():
        against = [None if one.label == other else scored.change(KL, one.label, other) for other in (plain, beside)]
        value = scored.scores[one.label][KL].interval
        rows.append((one.label, counts.get(one.label, 0), scored.bits(one.label), value, *against))
    columns = ("what is kept", "numbers", "bits per weight", "KL", f"minus {plain}", f"minus {beside}")
    note = (
        "KL in nats per token on our proof text, which chose nothing; differences are paired, windows resampled. A "
        f"number that is kept costs 48 bits. Super weights: {weights or 'none is proven'}. {CAVEAT}"
    )
    return Table(title="numbers kept in 16 bits, at true bits", columns=columns, rows=tuple(rows), note=note)


def _best(scored: GridScores, label: str, formats: Sequence[str]) -> str:
    """The plain format of the lowest KL among those that cost no more bits than a recipe, to a thousandth. It is chosen
    on the text that it is judged on, which can only favour it."""
    able = [one for one in formats if (scored.bits(one) or 0) <= (scored.bits(label) or 0) + 0.0005]
    return min(able, key=lambda one: scored.scores[one][KL].value)


def _note(scored: GridScores, label: str, formats: Sequence[str], share: float) -> str:
    beside = _best(scored, label, formats)
    change = scored.change(KL, label, beside)
    assert change is not None
    lower, higher = change.interval.high < 0, change.interval.low > 0
    verdict = "its KL is lower" if lower else "its KL is higher" if higher else "their KLs are not told apart"
    return (
        f"{label} ({share:.2%} of the weights, {scored.bits(label):.4g} bits) against the best plain format that costs "
        f"no more, {beside} ({scored.bits(beside):.4g} bits): {verdict}, {change.interval} nats."
    )


def _judged(scored: GridScores, plain: str, formats: Sequence[str], many: int, why: str) -> list[ClaimResult]:
    of = {one.kept: one.label for one in scored.tried() if one.kept in (WEIGHTS, OTHERS)}
    most = {words: label for words in _ORDERS.values() for label in scored.labels if f" {many:,}: {words}" in label}
    items = f"{len(scored.items(plain, KL, 'kl'))} pieces of our proof text"
    if len(of) < 2:
        proven = judged(_PROVEN, None, why="no super weight is proven")
    else:
        alone, control = (scored.change(KL, of[one], plain) for one in (WEIGHTS, OTHERS))
        number = scored.change(KL, of[WEIGHTS], of[OTHERS])
        proven = judged(_PROVEN, number, effect=alone, control=control, items=items, why=why, cost=_COST)
    label, other = most[_ORDERS["rounded"]], most[_ORDERS["random"]]
    beside = _best(scored, label, formats)
    number, control = scored.change(KL, label, beside), scored.change(KL, other, beside)
    against = f"{items}, against {beside}"
    return [proven, judged(_CHOSEN, number, effect=number, control=control, items=against, why=_STRADDLED)]


_COST = "the same with --set pieces=16: about 12 minutes with smollm2"
_STRADDLED = (
    "Weights that come from 4-bit blocks of 32 favour groups of 32 and 64, which hold whole blocks, over groups of 48, "
    "which cut across them."
)


def _chart(scored: GridScores) -> Chart:
    rows = [one.label for one in scored.tried()]
    series = Series(name="KL", points=tuple(point(scored.scores[label][KL].interval) for label in rows))
    return Chart(name="kept", plots=(Plot(kind="dots", rows=tuple(rows), series=(series,), x="KL, nats per token"),))

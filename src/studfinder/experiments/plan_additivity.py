"""When do the costs of rounding add up?

What it asks: a plan adds what each group costs alone. Is the whole the sum of its parts: at how many bits, and where
not? How: the KL of every fused group rounded alone, of all of them together, of the worst groups in pairs, and of all
but one of the worst, in several formats, on our proof text. A pair's excess is what it costs beyond the sum of both; a
group's gain is what putting it back wins where everything else is rounded, beside its cost alone. Where a scan has
proven super weights, pairs of groups on the spike's path (those that hold one, and what is before it in the same
network) are held against the other pairs. What to look at: sum over whole by format; and whether an excess is confined
to that path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from studfinder.experiments.plan_scores import FusedGroups, kl_of
from studfinder.experiments.weights import SuperWeightConfig, selection_of
from studfinder.models import LM
from studfinder.quantizers.formats import candidates
from studfinder.records import Cell, Chart, Comparison, Format, Plot, Series, Table, point
from studfinder.records.config import option
from studfinder.stats import ratio_interval
from studfinder.studies import Divergence, GridScores
from studfinder.studies.experiment import Bench, Experiment, Outcome
from studfinder.studies.rounding import CAVEAT


@dataclass(frozen=True, kw_only=True)
class AdditivityConfig(SuperWeightConfig):
    """Which formats, on how much text."""

    limit: int = option(8, help="Pieces of our proof text.", least=2)
    formats: tuple[str, ...] = option("int8-channel,int4-g64,int3-g64", help="Formats.", commas=True)
    pairs: int = option(10, help="The worst groups, of which all pairs are rounded.", least=2)


EXPERIMENT = Experiment(
    name="plan/additivity",
    paper="2411.07191",
    shows="ours",
    summary="Is what rounding everything costs the sum of what its parts cost, and where is it not?",
    needs="about 40 minutes and 3 GB with smollm2 on two cores (estimated; plus the scan that finds the super weights)",
    presets={"cpu": AdditivityConfig()},
    spread=True,
)
_EVERYTHING = "everything"


def run(bench: Bench, lm: LM) -> Outcome:
    """Singles, the whole, pairs, and all but one."""
    work = FusedGroups(bench, lm, candidates(bench.config.formats))
    path = spike_path(work, [weight.parameter for weight in selection_of(bench, lm).weights])
    alone = work.scored(work.singles(work.formats))
    whole = work.scored([work.variant(_all(one), dict.fromkeys(work.groups, one)) for one in work.formats])
    outcome = Outcome(remarks=[CAVEAT])
    _add_sums(outcome, work, alone, whole)
    for one in work.formats:
        worst = sorted(work.groups, key=lambda group: -kl_of(alone, _single(group, one)).value)[: bench.config.pairs]
        pairs = list(combinations(worst, 2))
        variants = [work.variant(_pair(pair, one), dict.fromkeys(pair, one)) for pair in pairs]
        variants += [work.variant(_without(group, one), _but(work, group, one)) for group in worst]
        seen = work.scored(variants)
        _add_pairs(outcome, work, one, pairs, (alone, seen), path)
        _add_restored(outcome, work, one, worst, (alone, whole, seen), path)
    return outcome


def spike_path(work: FusedGroups, parameters: Sequence[str]) -> set[str]:
    """Groups that hold one of these matrices, each of which writes what a feed-forward network has made, and those that
    hold what comes before it in the same network."""
    inner: set[str] = set(parameters)
    for layer in work.lm.anatomy.layers:
        for writer in layer.writers:
            if writer.parameter in parameters:
                inner |= {rows.ref.parameter for rows in (writer.up, writer.gate) if rows is not None}
    return {group for group, own in work.groups.items() if any(target.ref.parameter in inner for target in own)}


# --- variants -------------------------------------------------------------------------------------------------------


def _all(one: Format) -> str:
    return f"{_EVERYTHING} in {one.name}"


def _single(group: str, one: Format) -> str:
    return f"{group} in {one.name}"


def _pair(pair: tuple[str, str], one: Format) -> str:
    return f"{pair[0]} and {pair[1]} in {one.name}"


def _without(group: str, one: Format) -> str:
    return f"{_EVERYTHING} but {group} in {one.name}"


def _but(work: FusedGroups, group: str, one: Format) -> dict[str, Format]:
    return {other: one for other in work.groups if other != group}


# --- what is said of it ---------------------------------------------------------------------------------------------


def _add_sums(outcome: Outcome, work: FusedGroups, alone: GridScores, whole: GridScores) -> None:
    rows: list[tuple[Cell, ...]] = []
    for one in work.formats:
        every = kl_of(whole, _all(one))
        parts = sum(kl_of(alone, _single(group, one)).sums for group in work.groups)
        share = ratio_interval(np.asarray(parts), every.sums)
        bits = sum(work.size(group, one) for group in work.groups) / work.weights
        rows.append((one.name, bits, every.interval(), ratio_interval(np.asarray(parts), every.tokens), share))
        outcome.notes.append(f"in {one.name} the parts come to {share} of what the whole costs ({every.value:.3g}).")
    columns = ("format", "bits", "KL of the whole", "sum of the parts", "sum / whole")
    note = f"Every fused group rounded alone, and all together; pieces resampled. {CAVEAT}"
    outcome.tables.append(Table(title="sum and whole", columns=columns, rows=tuple(rows), note=note))
    x = tuple(float(row[1]) for row in rows)  # type: ignore[arg-type]
    series = Series(name="sum / whole", x=x, points=tuple(point(row[4]) for row in rows))  # type: ignore[arg-type]
    plot = Plot(kind="lines", series=(series,), x="bits a weight", y="sum of the parts / whole", none=1.0)
    outcome.charts.append(Chart(name="additivity", plots=(plot,)))


def _add_pairs(
    outcome: Outcome,
    work: FusedGroups,
    one: Format,
    pairs: Sequence[tuple[str, str]],
    scored: tuple[GridScores, GridScores],
    path: set[str],
) -> None:
    alone, seen = scored
    excess = {pair: _excess(one, pair, alone, seen) for pair in pairs}
    dearest = sorted(excess, key=lambda pair: -abs(excess[pair].value))[:10]
    rows: list[tuple[Cell, ...]] = [
        (
            " and ".join(map(work.label, pair)),
            "both" if set(pair) <= path else "one" if set(pair) & path else "none",
            kl_of(seen, _pair(pair, one)).interval(),
            Comparison(kind="difference", interval=excess[pair].interval()),
        )
        for pair in dearest
    ]
    note = (
        f"The ten with the largest excess of {len(pairs)} pairs of the worst groups: KL of both less the sum of each."
    )
    columns = ("pair", "on the spike's path", "KL", "excess")
    outcome.tables.append(Table(title=f"pairs in {one.name}", columns=columns, rows=tuple(rows), note=note))
    on = [excess[pair] for pair in pairs if set(pair) <= path]
    off = [excess[pair] for pair in pairs if not set(pair) <= path]
    if on and off:
        more = (Divergence.mean(on) - Divergence.mean(off)).interval()
        says = "more than" if more.low > 0 else "less than" if more.high < 0 else "not clearly otherwise than"
        outcome.notes.append(
            f"in {one.name}, pairs on the spike's path cost {Divergence.mean(on).interval()} beyond their sum, "
            f"{says} other pairs, {Divergence.mean(off).interval()} (by {more}; {len(on)} and {len(off)} of them)."
        )
    elif not on:
        outcome.notes.append(f"in {one.name}, no pair of the worst groups lies on a proven super weight's path.")


def _excess(one: Format, pair: tuple[str, str], alone: GridScores, seen: GridScores) -> Divergence:
    first, second = (kl_of(alone, _single(group, one)) for group in pair)
    return kl_of(seen, _pair(pair, one)) - first - second


def _add_restored(
    outcome: Outcome,
    work: FusedGroups,
    one: Format,
    worst: Sequence[str],
    scored: tuple[GridScores, GridScores, GridScores],
    path: set[str],
) -> None:
    alone, whole, seen = scored
    rows: list[tuple[Cell, ...]] = []
    for group in worst:
        single, gain = kl_of(alone, _single(group, one)), kl_of(whole, _all(one)) - kl_of(seen, _without(group, one))
        more = Comparison(kind="difference", interval=(gain - single).interval())
        rows.append((work.label(group), "yes" if group in path else "no", single.interval(), gain.interval(), more))
    columns = ("group", "on the spike's path", "alone", "put back", "- alone")
    note = "Alone: KL of rounding it and nothing else. Put back: what leaving it whole wins where all else is rounded."
    outcome.tables.append(Table(title=f"put back in {one.name}", columns=columns, rows=tuple(rows), note=note))

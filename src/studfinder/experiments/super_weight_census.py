"""Which numbers hold the model up, wherever they are? (ours; the score is LeCun et al.'s of 1989)

The papers look where activations spike. Here every number of the model, gains, biases and embeddings too, is ranked by
half of w^2 times the Fisher information, the predicted KL of setting it to zero (optimal brain damage, LeCun et al.
1989; optimal brain surgeon, Hassibi and Stork 1993; the same diagonal chooses what stays exact in SqueezeLLM,
2306.07629, and CherryQ, 2404.02837; Taylor importance, 1906.10771, is its first-order kin). What is new is that it is
checked: what stands first in this and in other orders (the scan's spikes; |w|; |w| times the norm of its input, as in
Wanda, 2306.11695), and a sample by decade of the prediction and by kind, is set to zero one by one, and all else in
pools, on text that chose nothing: our prompts choose, our proof text judges. A number that is not on the list could
only be missed by being in a pool that was not measured, and the bound says how many such there may be. Entries of the
output matrix are known exactly instead (`census_head`): thousands carry something, and no slope sees it.

Look at: how many of what carries more than .05 nats each order finds in its first k, and by how much predictions err.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from studfinder.detectors.census import Spot
from studfinder.detectors.census_findings import BIAS
from studfinder.edits import Edit, Names, Weights, scale, zero
from studfinder.experiments.census_counted import CENSUS, COMBINED, SPIKES, WANDA, combined, counted, spot_of
from studfinder.experiments.census_head import head_carriers, head_tables
from studfinder.experiments.census_tables import (
    FIRST_K,
    biases,
    carriers,
    early_down,
    errors,
    half_of,
    iceberg,
    recalled,
    recalls,
    where,
)
from studfinder.experiments.weights import load_findings
from studfinder.models import LM
from studfinder.models.kinds import gain_offsets, kinds_of
from studfinder.prove.pools import Pool, Pooled, pool_effects, search_sample
from studfinder.records import Interval, Table
from studfinder.records.config import option
from studfinder.records.numbers import VOCABULARY
from studfinder.stats import most_unseen
from studfinder.studies import swept
from studfinder.studies.experiment import Bench, Experiment, Outcome, StudyConfig
from studfinder.texts import encode, proof_text

_AT_A_FIFTH = "the same, embeddings at a fifth"
"""Of their prediction, in place of their median bias: some entries, of frequent tokens, are not overestimated."""
_TOGETHER = 24
"""Numbers measured in one step of the run."""
_DEEPER = 2
"""The combined order is measured so many times as far as each other."""
_HEAD = 12
"""Entries of the output matrix that the closed form says carry something, and that are measured."""
_GAINS = 16
"""Gains that are taken out in two ways."""


@dataclass(frozen=True, kw_only=True)
class CensusConfig(StudyConfig):
    """How much is measured, and on how much text."""

    draws: int = option(2, help="Labels drawn at each token of our prompts.", least=1)
    first: int = option(40, help="How many of each order are measured.", least=1)
    sample: int = option(4, help="How many numbers of each decade and kind are measured besides.", least=0)
    pools: int = option(200, help="How many pools of all other numbers are measured; 0 for none.", least=0)
    windows: int = option(8, help="Pieces of our proof text that judge.", least=2)
    tokens: int = option(64, help="Tokens of each.", least=8)
    threshold: float = option(0.05, help="Nats per token from which a number carries something.", above=0)


EXPERIMENT = Experiment(
    name="super-weight/census",
    paper="-",
    shows="ours",
    summary="Which numbers hold the model up, wherever they are, and how many may have been missed?",
    needs="about 40 minutes and 4 GB with smollm2 in float32 on one thread",
    presets={"cpu": CensusConfig()},
    spread=True,
)


def run(bench: Bench, lm: LM) -> Outcome:
    """Rank, measure, and bound what was not measured."""
    own: CensusConfig = bench.config
    judged = [ids[: own.tokens] for ids in encode(lm, proof_text())[0][: own.windows]]
    found = bench.once("census", lambda: _counted(bench, lm))
    rankings = {name: [spot_of(one) for one in spots] for name, spots in found["rankings"].items()}
    predicted = {spot_of(one): kl for one, kl in found["predicted"]}
    by_prediction = {*rankings[CENSUS][: own.first], *map(spot_of, found["sample"])}
    spots = {one for order in rankings.values() for one in order[: own.first]} | by_prediction
    measured = _zeroed(bench, lm, judged, spots, "numbers")
    rankings[COMBINED] = combined(lm, found["top"], rankings, BIAS)
    rankings[_AT_A_FIFTH] = combined(lm, found["top"], rankings, {"embedding": 0.2})
    more = [one for one in rankings[COMBINED][: _DEEPER * own.first] if one not in measured]
    measured |= _zeroed(bench, lm, judged, more, "numbers of the combined order")
    carried = bench.once("head", lambda: head_carriers(lm, judged, own.threshold))
    head = [(spot_of(one), kl) for one, kl in carried or []]
    drawn = random.Random(own.seed).sample(sorted(spot for spot, _ in head), min(_HEAD, len(head)))
    of_head = _zeroed(bench, lm, judged, drawn, "numbers of the head")
    notes = []
    if own.pools:
        pooled = _pools(bench, lm, judged, found, list(measured))
        rest = [one for one in (*rankings[COMBINED][: FIRST_K[-1]], *pooled.found) if one not in measured]
        measured |= _zeroed(bench, lm, judged, rest, "numbers of the rest")
        seen = set(pooled.found) - set(rankings[COMBINED][: FIRST_K[-1]])
        notes.append(_bound(lm, found, own.threshold, measured, pooled, len(seen)))
    table, iceberg_chart = iceberg(lm, found["decades"])
    chosen = {spot: measured[spot] for spot in sorted(by_prediction)}
    compared, chart = errors(lm, predicted, chosen)
    shown = {name: rankings[name] for name in (CENSUS, SPIKES, WANDA, COMBINED)}
    tables = [carriers(lm, predicted, measured, shown, own.threshold), *recalls(lm, measured, rankings, own.threshold)]
    tables += [compared, biases(lm, predicted, chosen), table, *where(lm, measured, found["totals"], own.threshold)]
    tables += _gains(bench, lm, judged, rankings[CENSUS], measured)
    if head:
        named = {one for spots in rankings.values() for one in spots[: FIRST_K[-1]]}
        notes.append(
            f"{len(head):,} entries of the output matrix carry more than {own.threshold:g} nats each (closed form); "
            f"{sum(spot not in named for spot, _ in head):,} of them are among no order's first {FIRST_K[-1]}."
        )
        tables += head_tables(lm, head, of_head, predicted)
    elif carried is None:
        notes.append("logits are no plain product with the output matrix: what its entries carry is not known.")
    else:
        notes.append(f"no entry of the output matrix carries more than {own.threshold:g} nats (closed form).")
    kinds = kinds_of(lm)
    outside = {spot: kl for spot, kl in measured.items() if kinds[spot[0]] not in VOCABULARY}
    said = [recalled(measured, rankings[name], name, own.threshold) for name in (COMBINED, _AT_A_FIFTH)]
    only = recalled(outside, rankings[COMBINED], COMBINED, own.threshold)
    said.append(f"outside the embedding and the output matrix: {only}")
    notes += dict.fromkeys(said)
    notes += early_down(lm, measured, own.threshold)
    notes.append(half_of([one[2] for one in found["top"]], found["totals"]))
    notes += [f"the gradient of {name} was not finite: nothing is predicted there." for name in found["nonfinite"]]
    data = {"measured": [[name, index, kl.value] for (name, index), kl in measured.items()]}
    return Outcome(tables, notes, [chart, iceberg_chart], data)


def _weights(spot: Spot) -> Weights:
    return Weights(parameter=spot[0], entries=(spot[1],))


def _bound(
    lm: LM, found: dict[str, Any], threshold: float, measured: Mapping[Spot, Interval], pooled: Pooled, seen: int
) -> str:
    """The sentence of what was missed. Seen is what pools hold and the list has not: a number of the list is none of
    those that may be unseen, whether it was in a pool or not."""
    kinds = kinds_of(lm)
    inside = {name for name, kind in kinds.items() if kind not in VOCABULARY}
    numbers = sum(sum(counts) for name, counts in found["decades"].items() if name in inside)
    heavy = sum(spot[0] in inside and kl.value > threshold for spot, kl in measured.items())
    return (
        f"of {numbers:,} numbers outside the embedding and the output matrix {heavy} were measured above {threshold:g} "
        f"nats per token, and are listed; with 95 % confidence at most {most_unseen(seen, pooled.chance)} others are: "
        f"{pooled.tested:,} of {pooled.of:,} pools that hold the rest were set to zero ({pooled.loud} carried more, by "
        f"{len(pooled.found)} single numbers, of which {seen} are not among the first {FIRST_K[-1]} of {COMBINED}), so "
        f"that each number had a chance of {pooled.chance:.0%} or more to be seen."
    )


def _gains(
    bench: Bench,
    lm: LM,
    judged: Sequence[Sequence[int]],
    ranked: Sequence[Spot],
    measured: Mapping[Spot, Interval],
) -> list[Table]:
    """Of gains that multiply by 1 + w: w at zero beside the factor at zero."""
    offsets = gain_offsets(lm)
    values = {
        one: float(lm.model.get_parameter(one[0]).detach()[one[1]])
        for one in ranked
        if one in measured and offsets.get(one[0])
    }
    values = {one: w for one, w in list(values.items())[:_GAINS] if w}
    if not values:
        return []
    off = _measured(bench, lm, judged, {one: scale(_weights(one), -1 / w) for one, w in values.items()}, "gains off")
    names = Names(lm)
    rows = tuple((names.of(*one), w, measured[one], off[one]) for one, w in values.items())
    columns = ("gain", "w", "KL, w at 0 (factor 1)", "KL, factor at 0")
    note = "These norms multiply by 1 + w. An edit that zeroes the number leaves the factor 1."
    return [Table(title="gains: two ways to take one out", columns=columns, rows=rows, note=note)]


def _counted(bench: Bench, lm: LM) -> dict[str, Any]:
    own: CensusConfig = bench.config
    findings, most = load_findings(bench, lm, prove=False), max(*FIRST_K, own.first)
    return counted(lm, findings, own.draws, most, own.sample, own.seed, bench.progress)


def _zeroed(
    bench: Bench, lm: LM, judged: Sequence[Sequence[int]], spots: Iterable[Spot], what: str
) -> dict[Spot, Interval]:
    return _measured(bench, lm, judged, {one: zero(_weights(one)) for one in spots}, what)


def _measured(
    bench: Bench, lm: LM, judged: Sequence[Sequence[int]], edits: Mapping[Spot, Sequence[Edit]], what: str
) -> dict[Spot, Interval]:
    """KL of each edit on the judging text, so many a step; those of a parameter stand together, for they fork there."""
    order = sorted(edits)
    found: dict[Spot, Interval] = {}
    for start in range(0, len(order), _TOGETHER):
        spots = order[start : start + _TOGETHER]
        effects = swept(bench, lm, f"{what} from {start}", judged, [edits[one] for one in spots], bench.progress)
        found |= {spot: effects.kl_interval(row) for row, spot in enumerate(spots)}
    return found


def _pools(
    bench: Bench, lm: LM, judged: Sequence[Sequence[int]], found: dict[str, Any], listed: Collection[Spot]
) -> Pooled:
    """Everything that is not listed, in pools; of a pool that carries more than the threshold, the number that does."""
    own: CensusConfig = bench.config
    predicted = {spot_of(one): kl for one, kl in found["predicted"]}

    def measure(turn: int, some: Sequence[Pool]) -> list[float]:
        kls: list[float] = []
        for start in range(0, len(some), _TOGETHER):
            part = some[start : start + _TOGETHER]
            kls += bench.once(f"pools {turn} from {start}", partial(pool_effects, lm, judged, part, listed))
            bench.progress(f"pools, round {turn + 1}", len(kls), len(some))
        return kls

    return search_sample(
        lm, found["totals"], found["wholes"], predicted, listed, own.pools, own.threshold, own.seed, measure
    )

"""Which cheap score says what rounding costs, and which plan comes of it?

What it asks: tools spend bits by scores that cost one pass or none: gradients, DeltaLoss, traces, importance of inputs,
or a rule such as "first and last layers". Which of them ranks the groups as measuring does, and what does a plan lose
that goes by it? How: the KL of rounding every fused group alone, in every format, on our proof text; every score from
our prompts, which share no text with it. Judged twice: by rank (Spearman, within a format; of scores in nats also how
many are within a factor of two), and by *regret*: all in the first format, and the groups that a score puts first in
the last one until the bits are spent; the KL of that, less the KL of the plan made from what was measured, on the
pieces of text that measured nothing. Control: groups drawn at random. What to look at: whether a score's regret
includes zero where those of the others do not; and whether ranks foretell regrets.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from studfinder.errors import StudfinderError
from studfinder.experiments.plan_rivals import FISHER_SCORES, SCORES, ByFormat, rival_scores
from studfinder.experiments.quantize_which_layer import CHOOSING, JUDGING
from studfinder.models import LM
from studfinder.passes import Stream
from studfinder.quantizers.formats import candidates, group_size
from studfinder.quantizers.mixed import mixed_stream
from studfinder.quantizers.targets import by_fused, targets
from studfinder.records import Cell, Chart, Comparison, Format, Plot, Series, Table, point
from studfinder.records.config import option
from studfinder.studies import KL, Divergence, GridScores, ModelVariant
from studfinder.studies.experiment import Bench, Experiment, Outcome, StudyConfig
from studfinder.studies.rounding import CAVEAT, Rounding
from studfinder.texts import default_prompts, encode

MEASURED, _AT_RANDOM = "measured", "at random"


@dataclass(frozen=True, kw_only=True)
class ScoresConfig(StudyConfig):
    """Which formats, on how much text."""

    limit: int = option(16, help="Pieces of our proof text; half of them measure, half judge the plans.", least=4)
    formats: tuple[str, ...] = option(
        "int4-g64,int4-channel,mxfp4,int8-channel",
        help="Formats; plans are made of the first and the last.",
        commas=True,
    )
    bits: tuple[float, ...] = option("4.5,4.75", help="Bits a weight of the plans.", commas=True, above=0)
    draws: int = option(3, help="Plans of groups drawn at random.", least=1)


EXPERIMENT = Experiment(
    name="plan/scores",
    paper="2411.07191",
    shows="ours",
    summary="Which cheap score says what rounding costs, and what does a plan lose that goes by it?",
    needs="about 60 minutes and 3 GB with smollm2 on two cores (estimated)",
    presets={"cpu": ScoresConfig()},
    spread=True,
)


def run(bench: Bench, lm: LM) -> Outcome:
    """Scores, what they foretell, and the plans made from them."""
    work = FusedGroups(bench, lm, candidates(bench.config.formats))
    began = time.monotonic()
    told = bench.once("scores", lambda: {"scores": work.predicted(), "seconds": time.monotonic() - began})
    alone = work.scored(work.singles(work.formats))
    plans = _plans(work, told["scores"], alone)
    judged = work.scored([work.variant(label, formats) for label, (formats, _) in plans.items()])
    outcome = Outcome(remarks=[CAVEAT])
    _add_ranks(outcome, work, told["scores"], alone)
    _add_regrets(outcome, work, plans, judged)
    seconds = sum(sum(one.values()) for label, one in alone.seconds.items() if label != alone.original)
    outcome.notes.append(
        f"all scores together took {told['seconds']:.0f} s, measuring {len(work.formats)} formats "
        f"{seconds:.0f} s: {seconds / max(told['seconds'], 1e-9):.1f} times as long."
    )
    return outcome


class FusedGroups:
    """A model's fused groups, each of which may be in any of some formats."""

    def __init__(self, bench: Bench, lm: LM, formats: Sequence[Format]) -> None:
        unfit = [one.name for one in formats if one.weights is None or one.kept]
        if unfit:
            raise StudfinderError(f"{unfit[0]} is not rounded to here", expected="formats that round every number")
        self.bench, self.lm, self.found = bench, lm, targets(lm)
        self.groups = by_fused(self.found)
        self.rounding = Rounding(bench, lm, pieces=bench.config.limit)
        self.formats = tuple(replace(one, weights=self.rounding.scheme(one.weights)) for one in formats)

    def label(self, group: str) -> str:
        """As tables call it, e.g. "L11 down_proj"."""
        return f"L{self.groups[group][0].layer} {group.rpartition('.')[2]}"

    def size(self, group: str, format: Format) -> float:
        """Bits of a group in a format."""
        return group_size(self.lm, self.groups[group], format)

    @property
    def weights(self) -> int:
        """How many numbers there are."""
        return sum(target.weight(self.lm).numel() for target in self.found)

    def variant(self, label: str, formats: Mapping[str, Format]) -> ModelVariant:
        """The model with some groups in formats, and the others as they are."""
        key = repr(sorted((group, one.name) for group, one in formats.items()))
        return ModelVariant(label, nullcontext, key, stream=partial(_stream, self, formats))

    def singles(self, formats: Iterable[Format]) -> list[ModelVariant]:
        """Every group alone, in every format."""
        return [self.variant(f"{group} in {one.name}", {group: one}) for one in formats for group in self.groups]

    def scored(self, variants: Sequence[ModelVariant]) -> GridScores:
        """The KL of each."""
        return self.rounding.scored(variants, [])

    def predicted(self) -> ByFormat:
        """Every cheap score of every group in every format."""
        windows = encode(self.lm, default_prompts())[0]
        progress = partial(self.bench.progress, "scoring")
        return rival_scores(self.lm, windows, self.formats, self.found, seed=self.bench.config.seed, progress=progress)


def _stream(work: FusedGroups, formats: Mapping[str, Format]) -> tuple[Stream, None]:
    return mixed_stream(work.lm, formats, {}, work.found), None


def kl_of(scored: GridScores, label: str) -> Divergence:
    """By piece of text."""
    return Divergence.of(scored.scores[label][KL])


# --- plans ----------------------------------------------------------------------------------------------------------

_Plans = dict[str, tuple[dict[str, Format], float]]
"""By label, the format of every group, and bits a weight."""


def _plans(work: FusedGroups, scores: ByFormat, alone: GridScores) -> _Plans:
    """Of every order of groups and every budget, and all groups in the first format."""
    base, better = work.formats[0], work.formats[-1]
    orders = dict(_orders(work, scores, alone))
    plans: _Plans = {f"all {base.name}": _spent(work, [], base, better, 0.0)}
    for bits in work.bench.config.bits:
        for name, order in orders.items():
            plans[_plan_label(name, bits)] = _spent(work, order, base, better, bits * work.weights)
    return plans


def _plan_label(name: str, bits: float) -> str:
    return f"{name}, {bits:g} bits"


def _orders(work: FusedGroups, scores: ByFormat, alone: GridScores) -> Iterable[tuple[str, list[str]]]:
    """By name, the groups in the order in which they are given the better format."""
    base, better = work.formats[0].name, work.formats[-1].name
    more = {group: work.size(group, work.formats[-1]) - work.size(group, work.formats[0]) for group in work.groups}

    def by(cost: Mapping[str, Mapping[str, float]]) -> list[str]:
        worth = {group: (cost[group][base] - cost[group][better]) / max(more[group], 1.0) for group in work.groups}
        return sorted(work.groups, key=lambda group: -worth[group])

    yield MEASURED, by({group: {n: _chosen_by(alone, group, n) for n in (base, better)} for group in work.groups})
    for score in SCORES:
        yield score, by(scores[score])
    layer = {group: own[0].layer for group, own in work.groups.items()}
    last = max(layer.values())
    yield "first and last layers", sorted(work.groups, key=lambda group: min(layer[group], last - layer[group]))
    writers = {writer.parameter for one in work.lm.anatomy.layers for writer in one.writers}
    down = [group for group, own in work.groups.items() if any(target.ref.parameter in writers for target in own)]
    if down:
        yield "down projections, deepest first", sorted(down, key=lambda group: -layer[group])
    random = np.random.default_rng(work.bench.config.seed)
    for draw in range(work.bench.config.draws):
        yield (
            f"{_AT_RANDOM}, draw {draw + 1}",
            [list(work.groups)[place] for place in random.permutation(len(work.groups))],
        )


def _chosen_by(alone: GridScores, group: str, format: str) -> float:
    return kl_of(alone, f"{group} in {format}")[CHOOSING].value


def _spent(
    work: FusedGroups, order: Sequence[str], base: Format, better: Format, most: float
) -> tuple[dict[str, Format], float]:
    formats = dict.fromkeys(work.groups, base)
    size = sum(work.size(group, base) for group in work.groups)
    for group in order:
        more = work.size(group, better) - work.size(group, base)
        if size + more <= most:
            formats[group] = better
            size += more
    return formats, size / work.weights


# --- what is said of it ---------------------------------------------------------------------------------------------


def _add_ranks(outcome: Outcome, work: FusedGroups, scores: ByFormat, alone: GridScores) -> None:
    from scipy.stats import spearmanr

    rows: list[tuple[Cell, ...]] = []
    near: list[tuple[Cell, ...]] = []
    for one in work.formats:
        measured = np.array([kl_of(alone, f"{group} in {one.name}").value for group in work.groups])
        for score in SCORES:
            told = np.array([scores[score][group][one.name] for group in work.groups])
            rows.append((one.name, score, float(spearmanr(told, measured)[0]), _of_worst(told, measured)))
            if score in FISHER_SCORES:
                within = (told > measured / 2) & (told < measured * 2)
                ratio = float(told.sum() / measured.sum())
                near.append((one.name, score, float(within.mean()), float(within[_worst(measured)].mean()), ratio))
    columns = ("format", "score", "Spearman", "of the worst tenth")
    note = (
        "Over all fused groups, against the KL of rounding each alone; how many of the worst tenth a score's has too."
    )
    outcome.tables.append(Table(title="ranks", columns=columns, rows=tuple(rows), note=note))
    heads = ("format", "score", "within a factor of 2", "of the worst tenth", "sum / sum measured")
    note = "Of scores in nats per token."
    outcome.tables.append(Table(title="nats", columns=heads, rows=tuple(near), note=note))
    outcome.data["ranks"] = [list(row) for row in rows]
    outcome.data["groups"] = {
        work.label(group): {one.name: kl_of(alone, f"{group} in {one.name}").value for one in work.formats}
        for group in work.groups
    }


def _worst(measured: np.ndarray) -> np.ndarray:
    return np.argsort(-measured)[: max(1, len(measured) // 10)]


def _of_worst(told: np.ndarray, measured: np.ndarray) -> float:
    return len(set(_worst(told)) & set(_worst(measured))) / len(_worst(measured))


def _add_regrets(outcome: Outcome, work: FusedGroups, plans: _Plans, judged: GridScores) -> None:
    rows: list[tuple[Cell, ...]] = []
    for label, (_, bits) in plans.items():
        kl = kl_of(judged, label)[JUDGING]
        ours = next(
            (own for own in (_plan_label(MEASURED, b) for b in work.bench.config.bits) if _same(own, label)), ""
        )
        regret: Comparison | None = None
        if ours and ours != label:
            regret = Comparison(kind="difference", interval=(kl - kl_of(judged, ours)[JUDGING]).interval())
        rows.append((label, bits, kl.interval(), regret))
    note = (
        f"All groups in {work.formats[0].name}, those that come first in {work.formats[-1].name} until the bits are "
        "spent. Regret: KL less that of the plan made from what was measured; paired, pieces resampled, of the pieces "
        f"that measured nothing. {CAVEAT}"
    )
    columns = ("plan", "bits", "KL", "regret")
    outcome.tables.append(Table(title="regrets", columns=columns, rows=tuple(rows), note=note))
    plots = []
    for bits in work.bench.config.bits:
        own = [row for row in rows if str(row[0]).endswith(_plan_label("", bits))]
        own.sort(key=lambda row: row[2].value)  # type: ignore[union-attr]
        names = tuple(str(row[0]).removesuffix(_plan_label("", bits)) for row in own)
        series = Series(name="KL", points=tuple(point(row[2]) for row in own))  # type: ignore[arg-type]
        plots.append(Plot(kind="dots", rows=names, series=(series,), title=f"{bits:g} bits", x="KL, nats per token"))
    outcome.charts.append(Chart(name="regrets", plots=tuple(plots)))
    for bits in work.bench.config.bits:
        outcome.notes.append(_verdict(bits, rows, judged))


def _same(own: str, label: str) -> bool:
    """Whether two plans are of the same bits."""
    return own.rpartition(", ")[2] == label.rpartition(", ")[2]


def _verdict(bits: float, rows: Sequence[tuple[Any, ...]], judged: GridScores) -> str:
    own = {row[0].removesuffix(_plan_label("", bits)): row for row in rows if row[0].endswith(_plan_label("", bits))}
    whole = own[MEASURED][2].value
    none = [name for name, row in own.items() if row[3] is not None and row[3].interval.low <= 0]
    best = min((name for name in own if name != MEASURED), key=lambda name: own[name][2].value)
    ours = own[FISHER_SCORES[0]]
    return (
        f"at {bits:g} bits the plan made from what was measured costs {whole:.3g} nats per token, that of the diagonal "
        f"{ours[2].value:.3g} (regret {ours[3].interval}, {ours[3].interval.value / whole:+.0%}); the best but the "
        f"measured one is {best}. Not shown to be worse than measuring: {', '.join(none) or 'none'}."
    )

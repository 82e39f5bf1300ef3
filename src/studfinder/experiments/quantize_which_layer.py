"""Which layer hurts, if only it is quantised?

What it asks: of all that a quantiser rounds, what does the damage, and does leaving that alone help? How: rounding to
nearest, one layer at a time, one kind of matrix at a time, and one matrix (with what is fused with it when served) at a
time, the rest in full precision; KL from the original on our proof text, all of them in one reading. Then everything is
rounded but the worst few matrices, beside everything but as many others of the same kinds, drawn at random; the worst
are chosen on every second window and judged on the others. Last, of the matrices that hold proven super weights: what
in them must be kept, the weights themselves, or the columns that meet their inputs? Control: as many other columns.
Beside small costs: the null edit's, which moves every number of the matrix to a neighbour in its dtype. What to look
at: whether small costs exceed that, whether the worst stand out beyond the phase null (the same groups begun at another
column), whether the parts add up to the whole, whether skipping the worst beats skipping others, and whether a super
weight's column makes its matrix as harmless as the median one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from studfinder.edits import Edit, null, stream_of, zero
from studfinder.experiments.quantize_keeps import COLUMNS, OTHER_COLUMNS, WEIGHTS, other_columns
from studfinder.experiments.quantize_phase import Shifted
from studfinder.experiments.weights import load_findings
from studfinder.models import LM
from studfinder.passes import Stream
from studfinder.quantizers import RTN, HoldOut, Target, hold_out, skip, targets
from studfinder.records import Cell, Chart, Comparison, Plot, Series, SuperWeight, Table, point
from studfinder.records.config import option
from studfinder.stats import crossed
from studfinder.studies import KL, Divergence, GridScores, ModelVariant, with_edits
from studfinder.studies.experiment import Bench, Experiment, Outcome
from studfinder.studies.rounding import CAVEAT, Rounding, SchemeConfig


@dataclass(frozen=True, kw_only=True)
class WhichLayerConfig(SchemeConfig):
    """Which scheme, on how much text."""

    limit: int = option(16, help="Pieces of our proof text; half of them choose the worst.", least=2)
    worst: int = option(3, help="Matrices that are left in full precision.", least=1)
    draws: int = option(5, help="Draws of as many others.", least=1)
    nulls: int = option(2, help="Draws of the null edit of the matrices that cost little.", least=1)


EXPERIMENT = Experiment(
    name="quantize/which-layer",
    paper="2411.07191",
    shows="ours",
    summary="Which layer or matrix hurts most when it is quantised, and does leaving it alone help?",
    needs="about 8 minutes and 2 GB with smollm2 on two cores (estimated; plus the scan that finds the super weights)",
    presets={"cpu": WhichLayerConfig()},
    spread=True,
)
EVERYTHING, WORST, _OTHERS = "everything", "all but the worst", "all but others"
CHOOSING, JUDGING = slice(0, None, 2), slice(1, None, 2)
"""Windows by which the worst are chosen, and those that judge them."""


@dataclass(frozen=True)
class _Part:
    """Fused groups that are quantised together: a layer, a kind of matrix, or one group."""

    label: str
    groups: tuple[str, ...]
    layer: int
    kind: str = ""


def run(bench: Bench, lm: LM) -> Outcome:
    """Every part by itself; then all but some."""
    work = _Work(bench, lm)
    every = parts(work.targets)
    alone = work.scored([work.only(part) for found in every for part in found])
    groups = every[2]
    worst = sorted(groups, key=lambda part: -_chosen_by(alone, part.label))[: bench.config.worst]
    rest = work.scored([*(work.only(part, shift=True) for part in worst), *work.without(worst, groups)])
    kept = work.scored(list(work.kept(load_findings(bench, lm).proven, groups)))
    small = _small(groups, alone)
    nulls = work.scored([null for part in small for null in work.nulls(part)])
    outcome = Outcome(remarks=[CAVEAT], data={"groups": [[p.layer, p.kind, _value(alone, p.label)] for p in groups]})
    _add_parts(outcome, every, alone)
    _add_nulls(outcome, alone, nulls, small)
    _add_rest(outcome, every, alone, rest, worst)
    _add_kept(outcome, alone, rest, kept, float(np.median([_value(alone, part.label) for part in groups])))
    return outcome


def parts(found: Sequence[Target]) -> tuple[list[_Part], list[_Part], list[_Part]]:
    """The layers, the kinds of matrices, and the fused groups of a model."""
    groups: dict[str, _Part] = {}
    for target in found:
        kind = target.fused.rpartition(".")[2]
        groups.setdefault(target.fused, _Part(f"L{target.layer} {kind}", (target.fused,), target.layer, kind))
    every = list(groups.values())
    layers = [
        _Part(f"L{layer}", tuple(g.groups[0] for g in every if g.layer == layer), layer)
        for layer in sorted({g.layer for g in every})
    ]
    kinds = [
        _Part(kind, tuple(g.groups[0] for g in every if g.kind == kind), min(g.layer for g in every if g.kind == kind))
        for kind in dict.fromkeys(g.kind for g in every)
    ]
    return layers, kinds, every


class _Work:
    """Variants of the model in which some groups are rounded to nearest."""

    def __init__(self, bench: Bench, lm: LM) -> None:
        self.bench, self.lm, self.targets = bench, lm, targets(lm)
        self.rounding = Rounding(bench, lm, pieces=bench.config.limit)
        self.scheme = self.rounding.scheme()

    def scored(self, variants: Sequence[ModelVariant]) -> GridScores:
        """KL of each."""
        return self.rounding.scored(variants, [])

    def only(self, part: _Part, *, shift: bool = False, keep: HoldOut | None = None, what: str = "") -> ModelVariant:
        """Nothing but this part rounded; with its blocks begun half a block away, or with something of it kept."""
        rest = [target.modules[0] for target in self.targets if target.fused not in part.groups]
        label = part.label + (", shifted" if shift else "") + (f", keep {what}" if what else "")
        return self._variant(label, rest, shift, keep, part.label, what)

    def _variant(
        self,
        label: str,
        skipped: Sequence[str],
        shift: bool = False,
        keep: HoldOut | None = None,
        family: str = "",
        kept: str = "",
    ) -> ModelVariant:
        method: RTN | Shifted = RTN(scheme=self.scheme)
        if shift and isinstance(self.scheme.block, int):
            method = Shifted(rtn=RTN(scheme=self.scheme), shift=self.scheme.block // 2)
        keeps = [*([skip(*sorted(set(skipped)))] if skipped else []), *([keep] if keep else [])]
        return self.rounding.variant(label, method, keep=keeps, kept=kept, family=family)

    def nulls(self, part: _Part) -> Iterator[ModelVariant]:
        """Every number of a part moved to a neighbour in its dtype, several times."""
        own = [target.entries(self.lm) for target in self.targets if target.fused in part.groups]
        for draw in range(self.bench.config.nulls):
            edits = null(zero(own), self.bench.config.seed + draw)
            moved = with_edits(self.lm, f"{part.label}, null, draw {draw + 1}", edits, f"{part.label}, null")
            yield replace(moved, stream=partial(_moved, self.lm, edits))

    def without(self, worst: Sequence[_Part], groups: Sequence[_Part]) -> Iterator[ModelVariant]:
        """Everything rounded; everything but the worst; everything but as many others of the same kinds."""
        yield self._variant(EVERYTHING, [])
        yield self._variant(WORST, self._modules(worst))
        random = np.random.default_rng(self.bench.config.seed)
        for draw in range(self.bench.config.draws):
            others: list[_Part] = []
            for part in worst:
                free = [g for g in groups if g.kind == part.kind and g not in worst and g not in others]
                others += [free[int(random.integers(len(free)))]] if free else []
            if others:
                yield self._variant(f"{_OTHERS}, draw {draw + 1}", self._modules(others))

    def _modules(self, chosen: Sequence[_Part]) -> list[str]:
        groups = {group for part in chosen for group in part.groups}
        return [target.modules[0] for target in self.targets if target.fused in groups]

    def kept(self, proven: Sequence[SuperWeight], groups: Sequence[_Part]) -> Iterator[ModelVariant]:
        """Each matrix with proven super weights, and everything, with something of the former kept."""
        homes = {target.name: target.fused for target in self.targets}
        for part in groups:
            own = [weight for weight in proven if homes.get(weight.parameter) in part.groups]
            for what, keep in self._keeps(own).items():
                yield self.only(part, keep=keep, what=what)
        for what, keep in self._keeps(proven).items():
            yield self._variant(f"{EVERYTHING}, keep {what}", [], keep=keep, family=EVERYTHING, kept=what)

    def _keeps(self, weights: Sequence[SuperWeight]) -> dict[str, HoldOut]:
        """The weights, their columns, and several draws of as many other columns."""
        if not weights:
            return {}
        seed, draws = self.bench.config.seed, range(self.bench.config.draws)
        keeps = {WEIGHTS: hold_out(weights), COLUMNS: hold_out(weights, columns=True)}
        others = (hold_out(other_columns(self.lm, weights, seed=seed + draw)) for draw in draws)
        return keeps | {f"{OTHER_COLUMNS}, draw {draw}": keep for draw, keep in enumerate(others, 1)}


def _moved(lm: LM, edits: Sequence[Edit]) -> tuple[Stream, None]:
    return stream_of(lm, edits), None


# --- what is said of it ---------------------------------------------------------------------------------------------


def _kl(scored: GridScores, label: str) -> Divergence:
    return Divergence.of(scored.scores[label][KL])


def _value(scored: GridScores, label: str) -> float:
    return scored.scores[label][KL].value


def _chosen_by(scored: GridScores, label: str) -> float:
    """What the worst are chosen by: the other windows than those that judge."""
    return _kl(scored, label)[CHOOSING].value


def _add_parts(outcome: Outcome, every: tuple[list[_Part], ...], alone: GridScores) -> None:
    titles = ("one layer", "one kind of matrix", "one matrix (with what is fused with it)")
    for title, some in zip(titles, every, strict=True):
        ranked = sorted((part.label for part in some), key=lambda label: -_value(alone, label))
        rows = tuple((label, alone.scores[label][KL].interval) for label in ranked)
        note = f"KL(original || quantised), nats per token, our proof text, pieces resampled. {CAVEAT}"
        outcome.tables.append(Table(title=f"{title} at a time", columns=("quantised", "KL"), rows=rows, note=note))
    layers, _, groups = every
    lines = {"the whole layer": layers}
    for part in groups:
        lines.setdefault(part.kind.replace("_proj", ""), []).append(part)
    series = tuple(Series(name=name, **_line(some, alone)) for name, some in lines.items())
    plot = Plot(kind="lines", series=series, x="layer (alone quantised)", y="KL, nats per token", log=True)
    outcome.charts.append(Chart(name="which-layer", plots=(plot,)))


def _line(some: Sequence[_Part], alone: GridScores) -> dict[str, Any]:
    return {"x": tuple(p.layer for p in some), "points": tuple(point(_value(alone, p.label)) for p in some)}


def _small(groups: Sequence[_Part], alone: GridScores) -> list[_Part]:
    """Of each kind of matrix the one that costs least, and the median one."""
    found: list[_Part] = []
    for kind in dict.fromkeys(part.kind for part in groups):
        own = sorted((part for part in groups if part.kind == kind), key=lambda part: _value(alone, part.label))
        found += dict.fromkeys((own[0], own[len(own) // 2]))
    return found


def _add_nulls(outcome: Outcome, alone: GridScores, nulls: GridScores, small: Sequence[_Part]) -> None:
    rows = []
    for part in small:
        kl = _kl(alone, part.label)
        sums = {"null": nulls.drawn(f"{part.label}, null", KL, "kl"), "kl": kl.sums[None], "tokens": kl.tokens[None]}
        noise = crossed(lambda mean: mean["null"] / mean["tokens"], sums, what="windows")
        net = crossed(lambda mean: (mean["kl"] - mean["null"]) / mean["tokens"], sums, what="windows")
        rows.append((part.label, kl.interval(), noise, Comparison(kind="difference", interval=net)))
    note = (
        "Of each kind of matrix the one that costs least and the median one. Null: every number of it moved to a "
        "neighbour in the dtype that it is stored in, which any change of it does at least; pieces and draws resampled."
    )
    columns = ("quantised", "KL", "null", "- null")
    outcome.tables.append(Table(title="small costs and noise", columns=columns, rows=tuple(rows), note=note))


def _add_rest(
    outcome: Outcome, every: tuple[list[_Part], ...], alone: GridScores, rest: GridScores, worst: Sequence[_Part]
) -> None:
    whole = _kl(rest, EVERYTHING)
    skips = {v.label: _kl(rest, v.label) for v in rest.tried() if not v.label.endswith(", shifted")}
    judged = {label: kl[JUDGING].interval() for label, kl in skips.items()}
    rows = tuple(
        (label, judged[label], None if label == EVERYTHING else _less(kl[JUDGING] - whole[JUDGING]))
        for label, kl in skips.items()
    )
    outcome.tables.append(
        Table(
            title="everything but a few",
            columns=("quantised", "KL", "- everything"),
            rows=rows,
            note="The worst: " + ", ".join(part.label for part in worst) + ", chosen on every second window; the "
            "numbers are of the rest. Others: drawn from matrices of the same kinds, so that they cost as many bits.",
        )
    )
    points = Series(name="KL", points=tuple(map(point, judged.values())))
    plot = Plot(kind="dots", rows=tuple(judged), series=(points,), x="KL, nats per token")
    outcome.charts.append(Chart(name="all-but", plots=(plot,)))
    layers, _, groups = every
    by_layer = sum(_value(alone, part.label) for part in layers)
    outcome.notes.append(
        f"quantising everything costs {whole.value:.3g} nats per token; layer by layer the costs add up to "
        f"{by_layer:.3g}, {by_layer / whole.value:.0%} of that."
    )
    first, *others = sorted((part.label for part in groups), key=lambda label: -_chosen_by(alone, label))
    if others:
        own = _kl(alone, first)[JUDGING]
        lead = (own - _kl(alone, others[0])[JUDGING]).interval()
        outcome.notes.append(
            f"{first} alone costs {own.interval()} on the windows that did not choose it, "
            f"{'clearly' if lead.low > 0 else 'not clearly'} more than the next, {others[0]} (difference {lead}); the "
            f"median matrix costs {float(np.median([_value(alone, part.label) for part in groups])):.3g}."
        )
    outcome.notes += [
        f"with its groups begun half a group away, {part.label} costs {_value(rest, f'{part.label}, shifted'):.3g} "
        f"instead of {_value(alone, part.label):.3g}."
        for part in worst
    ]
    drawn = [kl for label, kl in skips.items() if label.startswith(_OTHERS)]
    if drawn:
        gain = (Divergence.mean(drawn) - skips[WORST])[JUDGING].interval()
        says = "more than" if gain.low > 0 else "less than" if gain.high < 0 else "no more, clearly, than"
        outcome.notes.append(
            f"leaving the worst {len(worst)} in full precision helps {says} leaving {len(worst)} others of their "
            f"kinds (mean of {len(drawn)} draws; difference {gain} nats per token)."
        )


def _less(of: Divergence) -> Comparison:
    return Comparison(kind="difference", interval=of.interval())


def _add_kept(outcome: Outcome, alone: GridScores, rest: GridScores, kept: GridScores, median: float) -> None:
    """What keeping some numbers of the matrices with super weights wins."""
    if not kept.tried():
        outcome.notes.append("no super weight is proven, so nothing of a matrix was kept by itself.")
        return
    rows: list[tuple[Cell, ...]] = []
    for part in dict.fromkeys(one.family for one in kept.tried()):
        plain = _kl(rest if part == EVERYTHING else alone, part)
        own = {one.kept: _kl(kept, one.label) for one in kept.tried() if one.family == part}
        rows.append((part, "nothing", plain.interval(), None))
        rows += [(part, what, kl.interval(), _less(kl - plain)) for what, kl in own.items()]
        others = Divergence.mean([kl for what, kl in own.items() if what.startswith(OTHER_COLUMNS)])
        gain = (others - own[COLUMNS]).interval()
        says = "wins" if gain.low > 0 else "loses" if gain.high < 0 else "wins nothing, clearly,"
        outcome.notes.append(
            f"of {part}, keeping the columns that meet the super weights' inputs leaves {own[COLUMNS].value:.3g} of "
            f"{plain.value:.3g} nats, the super weights alone {own[WEIGHTS].value:.3g}, as many other columns "
            f"{others.value:.3g}; against these it {says} {gain}."
            + f" The median matrix costs {median:.3g}."
            * (part != EVERYTHING)
        )
    outcome.tables.append(
        Table(
            title="what to keep of the matrices with super weights",
            columns=("quantised", "kept in full precision", "KL", "- nothing kept"),
            rows=tuple(rows),
            note=f"A column is everything in a matrix that one input is multiplied with. {CAVEAT}",
        )
    )

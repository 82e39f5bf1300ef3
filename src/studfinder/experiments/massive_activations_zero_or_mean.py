"""Are massive activations constants (Sun et al. 2024, table 3)?

The paper sets them, once, where they first appear, to zero or to their mean over other text, and finds that zero
destroys the model and the mean changes nothing: so they act as fixed biases. It also zeroes as many activations near
the median, without effect; there are no intervals. Here every entry of each massive dim that passes the rule (|a| > 100
and > 1,000 times the median) after any layer where our prompts have one there is set to zero, or to the mean of its dim
and layer over those prompts (apart for first tokens and others), each dim alone and all together, on texts that are not
those prompts; windows all begin with BOS, or none does. Controls, at the same layers and tokens: as many other dims set
to zero, namely the next largest (the nearest in size that there are), random ones, several draws of them for all
together, and those nearest the median (the paper's). In the paper's code the hook works for two models by name, and its
token is hard-coded; ours follows the rule on each text, and also sets what later layers add to.

Look at: zero against random ones, and the mean against no change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from studfinder.experiments.massive_onset import Onset, onsets, set_massive, stand_ins
from studfinder.experiments.massive_reading import corpus_windows
from studfinder.measures import Scores
from studfinder.measures.likelihood import log_likelihoods
from studfinder.models import LM
from studfinder.records import Claim, ClaimResult, Comparison, Interval
from studfinder.records.config import option
from studfinder.report.words import count, number, times
from studfinder.stats import crossed, ratio_interval
from studfinder.studies import GridScores, ModelVariant, Watch, judged
from studfinder.studies.experiment import Bench, Experiment, Outcome, StudyConfig


@dataclass(frozen=True, kw_only=True)
class ZeroOrMeanConfig(StudyConfig):
    """On which texts and tasks."""

    limit: int = option(100, help="Items of a task.", least=1)
    windows: int = option(24, help="Windows of a perplexity.", least=1)
    window: int = option(256, help="Tokens of a window.", least=2)
    texts: tuple[str, ...] = option("wikitext2", help="Texts of perplexities.", commas=True)
    tasks: tuple[str, ...] = option("piqa,arc_easy", help="Public tasks.", commas=True)
    draws: int = option(3, help="Draws of random dims for all massive ones together.", least=1)
    alone: int = option(3, help="Massive dims that are changed alone, those with most entries.", least=1)


_ZERO = Claim(
    key="massive-activations/zero-matters",
    says="Set to zero, massive activations cost more than as many others.",
    decides="perplexity with all of them at zero / with as many random entries at zero, same layers and tokens",
    none=1.0,
    published="LLaMA2-13B on WikiText: 4.88 to 5729; as many near the median: no effect",
    paper_effect=5729 / 4.88,
)
_LIKE = Claim(
    key="massive-activations/zero-beyond-next-largest",
    says="Set to zero, massive activations cost more than the next largest dims at the same layers and tokens.",
    decides="perplexity with all of them at zero / with as many of the next largest dims at zero",
    none=1.0,
    published="no such control",
)
_DESTROYS = Claim(
    key="massive-activations/zero-destroys",
    says="Set to zero, massive activations destroy the model: perplexity is more than ten times as large.",
    decides="perplexity with all of them at zero / with as many random entries at zero; destroyed: more than 10",
    none=10.0,
    published="LLaMA2-7B: 5.47 to infinity; 13B: 4.88 to 5729; in Owen et al. (2025) harmless in 7 of 16 other models",
    paper_effect=5729 / 4.88,
)
_MEAN = Claim(
    key="massive-activations/mean-harmless",
    says="Set to their mean over other texts, nothing changes.",
    decides="perplexity with all of them at their mean / of the model as it is; margin: 2 %, nine times the paper's "
    "largest change",
    kind="within",
    none=1.0,
    margin=1.02,
    published="LLaMA2-7B: WikiText 5.47 to 5.47, PG-19 8.57 to 8.59; LLaMA2-13B: 4.88 to 4.88",
    paper_effect=8.59 / 8.57,
)
EXPERIMENT = Experiment(
    name="massive-activations/zero-or-mean",
    paper="2402.17762",
    shows="table 3",
    summary="Massive activations set to zero, or to their mean: are they constants?",
    needs="about 15 minutes and 1 GB with smollm2 on two cores",
    presets={
        "cpu": ZeroOrMeanConfig(),
        "paper": ZeroOrMeanConfig(
            limit=100_000,
            windows=100_000,
            window=4096,
            texts=("wikitext2", "c4"),
            tasks=("boolq", "piqa", "winogrande", "arc_easy", "arc_challenge"),
        ),
    },
    claims=(_ZERO, _LIKE, _DESTROYS, _MEAN),
    spread=True,
)
_ORIGINAL, _ALL = "original", "all"
_NEXT = f"control of {_ALL}: the next largest"
_PAPER = (
    "The paper (original, zero, mean), LLaMA2-7B: WikiText 5.47, inf, 5.47; mean of zero-shot tasks 68.95, 36.75, "
    "68.94. With BOS and other models (Owen et al. 2025) zero is harmless in 7 of 16."
)


@dataclass
class _Perplexity:
    """The perplexity of windows that all begin with BOS, or none of which does: a measure of a grid."""

    name: str
    source: str
    windows: list[list[int]]
    given: int
    """Tokens of a window that are not scored: the first of the text, which nothing announces, and BOS."""

    def see(self, lm: LM) -> None:
        """The original is a variant of its own."""

    def scores(self, lm: LM) -> dict[str, Scores]:
        found = log_likelihoods(lm, [(ids[: self.given], ids[self.given :]) for ids in self.windows])
        nll, tokens = -np.array([one.logprob for one in found]), np.array([float(one.tokens) for one in found])
        interval = ratio_interval(nll, tokens, exponential=True)
        items = {"nll": tuple(nll.tolist()), "tokens": tuple(tokens.tolist())}
        score = Scores(
            measure=self.name, value=interval.value, interval=interval, items=items, text=self.source, better="lower"
        )
        return {self.name: score}


def run(bench: Bench, lm: LM) -> Outcome:
    """The changes of the residual stream on the same windows, with the tokenizer's own habit, then the other; and the
    tasks."""
    own, (every, without) = bench.config, onsets(lm)
    outcome = Outcome(notes=without)
    results: list[tuple[str, GridScores]] = []
    for label, (bos, onset) in every.items():
        measures: list[Watch] = [_perplexity(lm, own, text, bos=bos) for text in own.texts]
        variants = _variants(lm, own, label, onset, alone=not results)
        scored = bench.grid(lm, variants, measures, lenient=True)
        results.append((label, scored))
        outcome.tables += [
            scored.scores_table(f"scores, {label}", _said(onset)),
            scored.changes_table(f"change against the original, {label}"),
        ]
        outcome.notes += [*_notes(label, scored), *scored.notes()]
        if len(results) == 1:
            outcome.charts.append(scored.chart("changes"))
            if own.tasks:
                few = [one for one in variants if one.label in (_ORIGINAL, *map(_of_all, ("zero", "their mean")))]
                few += [one for one in variants if one.family == _random(_ALL)][:1]
                tasks = bench.grid(lm, few, bench.each("tasks", "tasks"), lenient=True)
                outcome.tables.append(tasks.changes_table("change of accuracy against the original"))
                changed = [f"{name} {tasks.average(name):.1%}" for name in tasks.labels[1:]]
                what = count(len(tasks.tasks), "task")
                outcome.notes += [f"change of the average accuracy over {what}: {'; '.join(changed)}.", *tasks.notes()]
    outcome.claims += _claims(results)
    return outcome


def _perplexity(lm: LM, own: ZeroOrMeanConfig, text: str, *, bos: bool) -> _Perplexity:
    source, windows = corpus_windows(lm, text, own.window, own.windows, bos=bos)
    return _Perplexity(f"perplexity:{text}", source, [ids for ids in windows if len(ids) > 1 + bos], 1 + bos)


def _of_all(value: str) -> str:
    return f"{_ALL} to {value}"


def _random(name: str) -> str:
    return f"control of {name}: random"


def _variants(lm: LM, own: ZeroOrMeanConfig, begun: str, onset: Onset, *, alone: bool) -> list[ModelVariant]:
    """The original; all massive dims together, and alone if so asked; each with its controls."""

    def variant(label: str, dims: Sequence[int], key: str, family: str = "", **how: Any) -> ModelVariant:
        change = partial(set_massive, lm, onset, tuple(dims), **how)
        where = [(dim, onset.layers[dim], [onset.means[dim, layer] for layer in onset.layers[dim]]) for dim in dims]
        return ModelVariant(label, change, f"{begun} {key} {where} {sorted(onset.least.items())}", family)

    found = [ModelVariant(_ORIGINAL, key=begun)]
    single = [(f"dim {dim}", [dim]) for dim in onset.dims[: own.alone]] if alone and len(onset.dims) > 1 else []
    for name, dims in [(_ALL, list(onset.dims)), *single]:
        found.append(variant(f"{name} to zero", dims, "zero"))
        found.append(variant(f"{name} to their mean", dims, "mean", to_mean=True))
        draws = own.draws if name == _ALL else 1
        for draw in range(draws):
            label = _random(name) + (f" {draw + 1}" if draws > 1 else "")
            instead = stand_ins(onset, dims, "random", own.seed + draw)
            found.append(variant(label, dims, f"random {instead}", _random(name), instead=instead))
        for kind, called in (("like", "the next largest"), ("median", "median-like")):
            if alone and (name == _ALL or kind == "like"):
                instead = stand_ins(onset, dims, kind)
                found.append(variant(f"control of {name}: {called}", dims, f"{kind} {instead}", instead=instead))
    if alone:
        first = [onset.layer]
        here = [dim for dim in onset.dims if onset.layer in onset.layers[dim]]
        found.append(variant("to zero once, after the first layer (the paper's way)", here, "once", layers=first))
    return found


def _said(onset: Onset) -> str:
    """What was set, in words."""
    dims = []
    for dim, layers in onset.layers.items():
        (first, other), (late, late_other) = onset.means[dim, layers[0]], onset.means[dim, layers[-1]]
        size_C = onset.sizes[dim, layers[-1]].clone()
        mine = float(size_C[dim])
        size_C[list(onset.dims)] = 0.0
        dims.append(
            f"{dim} after layers {layers[0]} to {layers[-1]}, from {number(first)} at first tokens ({number(other)} at "
            f"others) to {number(late)} ({number(late_other)}), where the next largest dim has "
            f"{float(size_C.max()) / mine:.1%} of its size"
        )
    return f"Massive on our prompts: {'; '.join(dims)}. {_PAPER}"


def _beyond(scored: GridScores, measure: str) -> Comparison | None:
    """Perplexity with all at zero over that with as many random entries at zero, windows and draws resampled."""
    zero, family = _of_all("zero"), _random(_ALL)
    if scored.refused(zero) or any(scored.refused(one.label) for one in scored.variants if one.family == family):
        return None
    tokens = scored.items(scored.original, measure, "tokens")
    drawn = {"zero": scored.drawn(zero, measure, "nll"), "random": scored.drawn(family, measure, "nll")}

    def ratio(mean: Mapping[str, np.ndarray]) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.exp((mean["zero"] - mean["random"]) / mean["tokens"])

    return Comparison(kind="ratio", interval=crossed(ratio, {**drawn, "tokens": tokens[None]}, what="windows"))


def _notes(label: str, scored: GridScores) -> list[str]:
    notes = []
    for measure in scored.measures:
        changes = scored.changes(measure)
        if not {_of_all("zero"), _of_all("their mean")} <= set(changes):
            continue
        zero, mean = changes[_of_all("zero")], changes[_of_all("their mean")]
        rest = {name: interval for name, interval in changes.items() if name.startswith("control")}
        moved = [name.removeprefix("control of ") for name, i in rest.items() if i.low > 1.01 or i.high < 0.99]
        back = " (zero costs nothing that an interval would show)"
        if zero.low > 1:
            share = scored.share(measure, _of_all("zero"), _of_all("their mean"))
            back = f" (the mean keeps {share:.1%} of what zero loses in log perplexity)"
        notes.append(
            f"{label}, {measure.replace(':', ' on ')} becomes {times(zero)} as large with all massive activations at "
            f"zero and {times(mean)} with them at their mean{back}. Of the controls, "
            f"{' and '.join(moved) if moved else 'none'} is shown to change it by more than 1 % (interval beyond that)."
        )
    return notes


def _claims(results: Sequence[tuple[str, GridScores]]) -> list[ClaimResult]:
    """Judged on the first text, with the tokenizer's own habit; the rest is said beside it."""
    judged_as, scored = results[0]
    measure = scored.measures[0]

    def numbers(of: GridScores, one: str) -> dict[str, Comparison | None]:
        beyond = _beyond(of, one)
        like = of.change(one, _of_all("zero"), _NEXT) if _NEXT in of.labels else None
        mean = of.change(one, _of_all("their mean"))
        return {_ZERO.key: beyond, _LIKE.key: like, _DESTROYS.key: beyond, _MEAN.key: mean}

    def cell(label: str) -> Interval | None:
        found = scored.scores[label].get(measure)
        return found.interval if found else None

    every = [(f"{label}, {one}", numbers(of, one)) for label, of in results for one in of.measures]
    random = next(one.label for one in scored.variants if one.family == _random(_ALL))
    zero = (cell(_of_all("zero")), cell(random))
    shown = {
        _MEAN.key: (cell(_of_all("their mean")), cell(_ORIGINAL)),
        _LIKE.key: (cell(_of_all("zero")), cell(_NEXT)),
    }
    windows = len(scored.items(_ORIGINAL, measure, "nll"))
    found = []
    for claim in EXPERIMENT.claims:
        effect, control = shown.get(claim.key, zero)
        rest = [(where.replace("perplexity:", ""), one[claim.key]) for where, one in every[1:]]
        said = "; ".join(f"{where}: {one:.3g}" for where, one in rest if one)
        result = judged(
            claim,
            every[0][1][claim.key],
            effect=effect,
            control=control,
            items=count(windows, "window"),
            why=f"Judged {judged_as}, on {measure.partition(':')[2]}." + f" The same {said}" * bool(said),
            cost=f"--set windows={4 * windows} halves the interval, in four times the time",
        )
        found.append(result)
    return found

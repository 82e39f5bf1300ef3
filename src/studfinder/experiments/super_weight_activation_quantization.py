"""Eight-bit activations with the super activations held out (Yu et al. 2024, arXiv 2411.07191, tables 3, 4 and 7).

What it asks: does putting back a few super activations make naive W8A8 as good as SmoothQuant? How: weights in int8,
one scale a tensor, activations in int8, one scale a token (the paper's setting); perplexity naive, with SmoothQuant
(alpha 0.85, as the paper, and the reference's 0.5), and with the paper's REPLACE-quantise-RESTORE. The paper does not
say of what its median is nor which inputs it means, and released no code for this; here a super activation is a number
in a channel that a proven super weight writes or reads, above 20 times its token's median, and the median's scope is a
row of the table. Everything is done again with one scale a tensor, where an outlier costs most. Controls: the weights
alone in 8 bits, and other channels of the same matrices always held out. What to look at: the share of SmoothQuant's
gain, and whether there was a gain to share at all.

The paper's printed step, (max - min) / (2^(N-1) - 1), wastes a bit; here it is absmax / (2^(N-1) - 1), as SmoothQuant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from studfinder.experiments.weights import super_weights_of
from studfinder.models import LM
from studfinder.quantizers import RTN, Scheme
from studfinder.quantizers.activations import ActivationScheme, Restore, WithActivations, super_channels
from studfinder.quantizers.smoothquant import SmoothQuant
from studfinder.records import Interval, Table
from studfinder.records.config import option
from studfinder.studies import KL, PAIRED, GridScores, ModelVariant, head, spoken
from studfinder.studies.experiment import Bench, Experiment, Outcome
from studfinder.studies.rounding import CAVEAT, CalibratedConfig, Rounding, families_chart


@dataclass(frozen=True, kw_only=True)
class RestoreConfig(CalibratedConfig):
    """Which texts and elements."""

    texts: tuple[str, ...] = option("wikitext2,c4", help="Texts of perplexities.", commas=True)
    element: str = option("int8", help="What activations are rounded to.")
    alphas: tuple[float, ...] = option("0.85,0.5", help="SmoothQuant's alpha.", commas=True)


EXPERIMENT = Experiment(
    name="super-weight/activation-quantization",
    paper="2411.07191",
    shows="tables 3, 4 and 7",
    summary="Does holding out super activations make naive 8-bit activations as good as SmoothQuant?",
    needs="about 15 minutes and 2 GB with smollm2 on two cores (estimated; plus the scan that finds the super weights)",
    presets={"cpu": RestoreConfig()},
)
_WEIGHTS = Scheme(element="int8", block="tensor", narrow=True)
NAIVE, OURS, _OTHERS, SMOOTH = "naive W8A8", "REPLACE-RESTORE", "other channels held out", "SmoothQuant"


_PAPER = (
    "The paper (per token; WikiText-2, C4): Llama-7B 5.68, 7.08 in FP16, naive 5.83, 7.23, SmoothQuant 5.71, 7.12, "
    "theirs 5.74, 7.14; Mistral-7B 5.25, 7.75, naive 5.32, 7.83, theirs 5.31, 7.81."
)


def run(bench: Bench, lm: LM) -> Outcome:
    """Every way of rounding the activations, on every text."""
    weights, _ = super_weights_of(bench, lm)
    rounding = Rounding(bench, lm)
    variants = list(_variants(rounding, super_channels(lm, weights)))
    scored = rounding.scored(variants, bench.each("perplexity", "texts"))
    naive = {one.family: one.label for one in scored.tried() if one.kept == NAIVE}
    rest = [one for one in scored.tried() if one.family in naive and one.kept != NAIVE]
    pairs = [(one.label, one.label, naive[one.family]) for one in rest]
    texts = [measure for measure in scored.measures if measure != KL]
    tables = [
        scored.scores_table("scores", f"{_PAPER} {CAVEAT}", bits="bits per weight", first="recipe"),
        scored.changes_table("against naive W8A8 of the same scope", PAIRED, pairs=pairs),
        _shares_table(scored, naive, texts),
    ]
    notes = [_said(scored, family, label, measure) for family, label in naive.items() for measure in texts]
    for label in (OURS, _OTHERS, SMOOTH):
        for measure in scored.measures:
            own = [(one.label, naive[one.family]) for one in rest if one.kept.startswith(label)]
            says = scored.tally(own, measure)
            notes += [f"{label} against naive W8A8 {says}, over scopes and variants."] if says else []
    chart = families_chart(scored, "activations", turned=True)
    return Outcome(tables, [*notes, *scored.notes()], [chart], remarks=[CAVEAT])


def _variants(rounding: Rounding, places: Any) -> Iterator[ModelVariant]:
    own = rounding.bench.config
    yield rounding.variant("weights only, int8 per tensor", RTN(scheme=_WEIGHTS), family="weights only")
    others = _other_places(rounding.lm, places, own.seed)
    for scope in ("token", "tensor"):
        plain = ActivationScheme(element=own.element, scope=scope)
        held: dict[str, Restore | None] = {NAIVE: None}
        for median in ("token", "tensor", "channel"):
            held[f"{OURS}, median of the {median}"] = Restore(places=places, median=median)
        held[_OTHERS] = Restore(places=others, ratio=1e-9)  # each of them, whatever its size
        methods: dict[str, Any] = {
            label: WithActivations(weights=RTN(scheme=_WEIGHTS), activations=replace(plain, restore=restore))
            for label, restore in held.items()
        }
        for alpha in own.alphas:
            methods[f"{SMOOTH} {alpha}"] = SmoothQuant(scheme=_WEIGHTS, activations=plain, alpha=alpha)
        for label, method in methods.items():
            yield rounding.variant(f"{label}, per {scope}", method, kept=label, family=f"per {scope}")


def _other_places(lm: LM, places: Any, seed: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """As many other channels of the same inputs."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for name, channels in places:
        module = lm.model.get_submodule(name.rpartition(".")[0])
        size = getattr(module, "in_features", None) or lm.model.get_parameter(name).shape[0]  # Conv1D is (in, out)
        free = [channel for channel in torch.randperm(size, generator=generator).tolist() if channel not in channels]
        found.append((name, tuple(sorted(free[: len(channels)]))))
    return tuple(found)


def _said(scored: GridScores, family: str, naive: str, measure: str) -> str:
    """What there is to gain."""
    comparison = scored.change(measure, naive)
    assert comparison is not None
    says = (
        f"multiplies {spoken(measure)} by {comparison:.4g}"
        if comparison.changed
        else "costs nothing that an interval would show, so there is no gain to share"
    )
    return f"naive W8A8 with one scale a {family.removeprefix('per ')} {says}."


def _shares_table(scored: GridScores, naive: dict[str, str], texts: list[str]) -> Table:
    """(naive - ours) / (naive - SmoothQuant), of log perplexity, against the best SmoothQuant of the same scope."""
    rows = []
    for one in scored.tried():
        smooth = [v.label for v in scored.tried() if v.family == one.family and v.kept.startswith(SMOOTH)]
        if one.kept.startswith((OURS, _OTHERS)) and smooth:
            shares = (_share(scored, one.label, naive[one.family], smooth, measure) for measure in texts)
            rows.append((one.label, *shares))
    return Table(
        title="share of SmoothQuant's gain",
        columns=("recipe", *map(head, texts)),
        rows=tuple(rows),
        note="Of log perplexity, against the alpha that is best for it; only where SmoothQuant itself gains against "
        "naive W8A8, with an interval that shows it. The paper: 71 to 84 % (Llama, OLMo), 14 and 25 % on Mistral-7B, "
        f"9 and 17 % on Llama-2-7B. {CAVEAT}",
    )


def _share(scored: GridScores, ours: str, naive: str, smooth: list[str], measure: str) -> Interval | str:
    best = min(smooth, key=lambda label: scored.scores[label][measure].value)
    gained = scored.change(measure, best, naive)
    if gained is None or gained.interval.high >= 1:
        return "SmoothQuant gains nothing"
    return scored.share(measure, naive, ours, best)

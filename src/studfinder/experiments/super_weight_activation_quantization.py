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
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.experiments.quantize_draw import draw_ratios, ratios_data
from studfinder.experiments.quantize_recipes import CAVEAT, KL, Made, Recipe, RecipeWork, limits_of, listed
from studfinder.experiments.quantize_tables import change, changes_table, refusals, scores_table, spoken, tally
from studfinder.experiments.weights import super_weights_of
from studfinder.models import LM
from studfinder.quantizers import RTN, Scheme
from studfinder.quantizers.activations import ActivationScheme, Restore, WithActivations, super_channels
from studfinder.quantizers.smoothquant import SmoothQuant
from studfinder.records import Interval, Result, Table
from studfinder.stats import averaged

EXPERIMENT = Experiment(
    name="super-weight/activation-quantization",
    paper="2411.07191",
    shows="tables 3, 4 and 7",
    summary="Does holding out super activations make naive 8-bit activations as good as SmoothQuant?",
    needs="about 15 minutes and 2 GB with smollm2 on two cores (estimated; plus the scan that finds the super weights)",
    presets={
        "cpu": {
            "limit": 16,
            "pieces": 16,
            "texts": "wikitext2,c4",
            "element": "int8",
            "alphas": "0.85,0.5",
            "calibration": "wikipedia",
            "calibration_windows": 16,
            "length": 512,
        }
    },
)
_WEIGHTS = Scheme(element="int8", block="tensor", narrow=True)
NAIVE, OURS, _OTHERS, SMOOTH = "naive W8A8", "REPLACE-RESTORE", "other channels held out", "SmoothQuant"


def run(bench: Bench) -> Outcome:
    """Every way of rounding the activations, on every text."""
    outcome = Outcome([])
    measures = [f"perplexity:{text}" for text in listed(bench.settings["texts"])] + [KL]
    for name in bench.models:
        with bench.model(name) as lm:
            weights, _ = super_weights_of(bench, lm)
            recipes = list(_recipes(bench, lm, super_channels(lm, weights)))
            work = RecipeWork(bench=bench, lm=lm, measures=measures, limits=limits_of(bench))
            made = work.carried_out(recipes)
        _add(outcome, name, made, work)
    outcome.notes.append(CAVEAT)
    return outcome


def _recipes(bench: Bench, lm: LM, places: Any) -> Iterator[Recipe]:
    yield Recipe(label="weights only, int8 per tensor", method=RTN(scheme=_WEIGHTS), family="weights only")
    element = bench.settings["element"]
    others = _other_places(lm, places, bench.settings["seed"])
    for scope in ("token", "tensor"):
        plain = ActivationScheme(element=element, scope=scope)
        held: dict[str, Restore | None] = {NAIVE: None}
        for median in ("token", "tensor", "channel"):
            held[f"{OURS}, median of the {median}"] = Restore(places=places, median=median)
        held[_OTHERS] = Restore(places=others, ratio=1e-9)  # each of them, whatever its size
        for label, restore in held.items():
            method: Any = WithActivations(weights=RTN(scheme=_WEIGHTS), activations=replace(plain, restore=restore))
            yield Recipe(label=f"{label}, per {scope}", method=method, kept=label, family=scope)
        for alpha in listed(bench.settings["alphas"]):
            label = f"{SMOOTH} {alpha}"
            method = SmoothQuant(scheme=_WEIGHTS, activations=plain, alpha=float(alpha))
            yield Recipe(label=f"{label}, per {scope}", method=method, kept=label, family=scope)


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


def _add(outcome: Outcome, name: str, made: list[Made], work: RecipeWork) -> None:
    measures = [measure for measure in work.measures if measure in made[0].scores]
    naive = {one.recipe.family: one for one in made if one.recipe.kept == NAIVE and not one.refused}
    pairs = [
        (one, naive[one.recipe.family])
        for one in made
        if one.recipe.family in naive and one.recipe.kept != NAIVE and not one.refused
    ]
    paper = (
        "The paper (per token; WikiText-2, C4): Llama-7B 5.68, 7.08 in FP16, naive 5.83, 7.23, SmoothQuant 5.71, 7.12, "
        "theirs 5.74, 7.14; Mistral-7B 5.25, 7.75, naive 5.32, 7.83, theirs 5.31, 7.81."
    )
    outcome.tables += [
        scores_table(name, made, measures, paper, "bits per weight"),
        changes_table(
            f"{name}: against naive W8A8 of the same scope",
            [(one.recipe.label, one, plain) for one, plain in pairs],
            measures,
            "Paired; perplexity as a factor, KL as a difference.",
        ),
        _shares_table(name, made, naive, [measure for measure in measures if measure != KL]),
    ]
    for family, plain in naive.items():
        for measure in measures[:-1]:  # KL is not compared with the original's own
            outcome.notes.append(f"{name}: {_said(family, plain, made, measure)}")
    for label in (OURS, _OTHERS, SMOOTH):
        for measure in measures:
            says = tally([pair for pair in pairs if pair[0].recipe.kept.startswith(label)], measure)
            outcome.notes += [f"{name}: {label} against naive W8A8 {says}, over scopes and variants."] if says else []
    outcome.notes += [f"{name}: {measure} was not measured. {why}" for measure, why in work.missing.items()]
    outcome.notes += refusals(name, made)
    outcome.data.setdefault("models", {})[name] = ratios_data(made, measures[0])


def _said(family: str, plain: Made, made: list[Made], measure: str) -> str:
    """What there is to gain."""
    comparison = change(plain, made[0], measure)
    assert comparison is not None
    inside = comparison.interval
    says = (
        "costs nothing that an interval would show, so there is no gain to share"
        if inside.low <= 1 <= inside.high
        else f"multiplies {spoken(measure)} by {inside.value:.4g} [{inside.low:.4g}, {inside.high:.4g}]"
    )
    return f"naive W8A8 with one scale a {family} {says}."


def _shares_table(name: str, made: list[Made], naive: dict[str, Made], measures: list[str]) -> Table:
    """(naive - ours) / (naive - SmoothQuant), of log perplexity, against the best SmoothQuant of the same scope."""
    smooth: dict[str, list[Made]] = {}
    for one in made:
        if one.recipe.kept.startswith(SMOOTH) and not one.refused:
            smooth.setdefault(one.recipe.family, []).append(one)
    rows = []
    for one in made:
        if one.recipe.kept.startswith((OURS, _OTHERS)) and not one.refused and one.recipe.family in smooth:
            plain, tried = naive[one.recipe.family], smooth[one.recipe.family]
            best = {measure: min(tried, key=lambda other: other.scores[measure].value) for measure in measures}
            rows.append((one.recipe.label, *(_share(one, plain, best[measure], measure) for measure in measures)))
    return Table(
        title=f"{name}: share of SmoothQuant's gain",
        columns=("recipe", *(measure.replace(":", " ") for measure in measures)),
        rows=tuple(rows),
        note="Of log perplexity, against the alpha that is best for it; only where SmoothQuant itself gains against "
        "naive W8A8, with an interval that shows it. The paper: 71 to 84 % (Llama, OLMo), 14 and 25 % on Mistral-7B, "
        f"9 and 17 % on Llama-2-7B. {CAVEAT}",
    )


def _share(one: Made, plain: Made, best: Made, measure: str) -> Interval | str:
    gained = change(best, plain, measure)
    if gained is None or gained.interval.high >= 1:
        return "SmoothQuant gains nothing"
    ours, naive, smooth = (np.array(made.scores[measure].items["nll"]) for made in (one, plain, best))
    return averaged([naive - ours], [naive - smooth])


def draw(result: Result, width: float) -> dict[str, Figure]:
    """Perplexity over the original's: a row a variant, a colour a scope."""
    turned = {}
    for name, seen in result.data["models"].items():
        places = [place for place, family in enumerate(seen["rows"]) if family != "weights only"]
        kinds = [kind for kind in seen["series"] if kind != "nothing"]
        series = {f"per {seen['rows'][p]}": [seen["series"][kind][p] for kind in kinds] for p in places}
        turned[name] = {"rows": kinds, "series": series, "measure": seen["measure"]}
    return draw_ratios(replace(result, data={"models": turned}), width, "activations")

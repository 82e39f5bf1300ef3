"""Disrupting massive values (Jin et al. 2025, arXiv 2502.01563, table 1): do only answers from context suffer?

What it asks: the paper sets the largest dims of every head of Q and K to one mean; tasks that read their prompt
collapse, questions about facts lose little, and the smallest dims (its control) do nothing. Is that so here, and is it
about massive values, or would any damage of that size do it? How: k largest dims or all above lambda, pooled into one
mean (the paper's) or each at its own; controls: smallest, random, next in norm, same rotary band, and noise elsewhere
in Q and K or in V that is tuned to the same KL on neutral text. What to look at: the second table. It asks the same
questions from the prompt and from the weights, in one format, and holds the difference between the two against the
same difference under equally harmful noise elsewhere.

The paper's contrast is confounded: generated answers with a floor near 0 % for context, yes or no with a floor of 50 %
for facts. Its control is the easiest there is, as the smallest dims carry no score. Its IMDB items are all negative
(the split is sorted and only its beginning is read), and its passkey prompts for Llama and Gemma hold no question.
Ours: log-probabilities against known chance, balanced reviews, a question. Edits act on prompts, never on decoding.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from studfinder.edits import Edit, edited
from studfinder.errors import StudfinderError, WriteFailed
from studfinder.experiments.disruptions import Disruption, as_harmful, controls, massive, neutral, noise_in
from studfinder.experiments.disruptions_read import (
    CONTEXT,
    MEMORY,
    DisruptionScores,
    comparisons_table,
    disruption_notes,
    disruption_table,
    draw_contrast,
)
from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.measures import measure_named, sweep
from studfinder.measures.matched_facts import calibrate_facts
from studfinder.models import LM
from studfinder.records import Result

EXPERIMENT = Experiment(
    name="massive-values/disrupt",
    paper="2502.01563",
    shows="table 1",
    summary="When massive values are disrupted, do only answers from context suffer, and more than by equal damage?",
    needs="about 20 minutes with smollm2 on two cores",
    presets={
        "cpu": {
            "limit": 48,
            "k": [1, 2],
            "lambdas": [5],
            "noise": [0.5],
            "draws": 2,
            "measures": "passkey:128,256 tasks:sentiment facts",
            "facts_in_prompt": 0,
        }
    },
)
_MOST = {"passkey": 10, "tasks": 24}
"""Measures whose items are long take fewer of them."""


def run(bench: Bench) -> Outcome:
    """Clean scores, then every disruption on the same items."""
    tables, notes, data = [], [], {}
    for name in bench.models:
        with bench.model(name) as lm:
            rows, left_out = _measured(bench, lm)
        data[name] = rows.plain()
        tables += [disruption_table(name, rows), comparisons_table(name, rows)]
        notes += [f"{name}: {text}" for text in [*left_out, *disruption_notes(rows)]]
    return Outcome(tables, notes, data)


def _measured(bench: Bench, lm: LM) -> tuple[DisruptionScores, list[str]]:
    clean, left_out = _clean(bench, lm)
    rows = DisruptionScores(clean=clean, scores={}, against=[])
    ks, draws = [int(k) for k in bench.settings["k"]], int(bench.settings["draws"])
    attacks = []
    for attack in massive(lm, ks, [float(lam) for lam in bench.settings["lambdas"]]):
        if bench.once(f"{attack.key} exists", partial(_exists, lm, attack.edits)):
            attacks.append(attack)
        else:
            left_out.append(f"{attack.name}: there is no such dim.")
    plan = [*attacks, *controls(lm, ks, draws)]
    for attack in attacks:
        plan += _as_harmful(bench, lm, rows, left_out, attack, ("the other dims",), max(ks), draws)
    for std in bench.settings["noise"]:
        plan += _noises(bench, lm, rows, left_out, float(std), max(ks), draws)
    for done, disruption in enumerate(plan):
        bench.progress("disrupting Q and K", done, len(plan))
        seen = bench.once(disruption.key, partial(_scores, bench, lm, list(clean["measures"]), disruption.edits))
        rows.scores.setdefault(disruption.name, []).append(seen)
    bench.progress("disrupting Q and K", len(plan), len(plan))
    return rows, left_out


def _exists(lm: LM, edits: tuple[Edit, ...]) -> bool:
    """Whether anything is above lambda: not every model has massive values."""
    try:
        sweep(lm, neutral(lm)[1][:1], [edits])
    except WriteFailed:
        raise
    except StudfinderError:
        return False
    return True


def _noises(
    bench: Bench, lm: LM, rows: DisruptionScores, left_out: list[str], std: float, k: int, draws: int
) -> list[Disruption]:
    """Noise in the massive dims, and noise of the same damage in the others and in V: only the place differs."""
    name = f"noise in the {k} massive dim{'s' * (k > 1)} ({std:g} rms)"
    here = [
        Disruption(name, f"{name} draw {seed}", noise_in(lm, "the massive dims", k, std, seed)) for seed in range(draws)
    ]
    first = Disruption(name, name, noise_in(lm, "the massive dims", k, std, draws))  # a draw that is not judged
    return [*here, *_as_harmful(bench, lm, rows, left_out, first, ("the other dims", "V"), k, draws)]


def _as_harmful(
    bench: Bench,
    lm: LM,
    rows: DisruptionScores,
    left_out: list[str],
    of: Disruption,
    places: tuple[str, ...],
    k: int,
    draws: int,
) -> list[Disruption]:
    """Noise elsewhere, tuned to the damage of a disruption; what cannot be matched is left out, and said."""
    found = []
    for place in places:
        name = f"noise in {place}, as harmful as: {of.name}"
        try:
            tuned = bench.once(f"strength of {name}", partial(as_harmful, lm, of.edits, place, k))
        except WriteFailed:
            raise
        except StudfinderError as error:
            left_out.append(f"no {name} ({error.what}).")
            continue
        if not tuned["matched"]:
            left_out.append(f"no {name}: its KL of {tuned['target']:.3g} was not reached (nearest: {tuned['kl']:.3g}).")
            continue
        rows.against.append((of.name, name))
        found += [
            Disruption(name, f"{name} draw {seed}", noise_in(lm, place, k, tuned["std"], seed)) for seed in range(draws)
        ]
    return found


# --- measuring ------------------------------------------------------------------------------------------------------


def _clean(bench: Bench, lm: LM) -> tuple[dict[str, Any], list[str]]:
    """The clean model's scores. Measures whose data is not here are left out, and said."""
    count = int(bench.settings["facts_in_prompt"]) or bench.once("facts in the prompt", partial(calibrate_facts, lm))
    asked = [f"{CONTEXT}:{count}", f"{MEMORY}:{count}", *str(bench.settings["measures"]).split()]
    scores: dict[str, Any] = {}
    left_out = []
    for number, measure in enumerate(asked):
        bench.progress("clean scores", number, len(asked))
        try:
            scores[measure] = bench.once(f"clean {measure}", partial(_score, bench, lm, measure))
        except WriteFailed:
            raise
        except StudfinderError as error:
            if measure_base(measure) in (CONTEXT, MEMORY):
                raise
            left_out.append(f"{measure} is left out: {error.what}.")
    return {"measures": scores}, left_out


def measure_base(measure: str) -> str:
    """A measure's name without its argument."""
    return measure.partition(":")[0]


def _score(bench: Bench, lm: LM, measure: str) -> dict[str, Any]:
    most = _MOST.get(measure_base(measure), 10**9)
    scores = measure_named(measure)(lm, limit=min(bench.settings["limit"], most), seed=int(bench.settings["seed"]))
    return {
        "score": list(scores.items["score"]),
        "margin": np.round(scores.items["margin"], 4).tolist() if "margin" in scores.items else None,
        "clusters": list(scores.clusters) or None,
        "chance": scores.chance or 0.0,
        "text": scores.text,
    }


def _scores(bench: Bench, lm: LM, measures: list[str], edits: tuple[Edit, ...]) -> dict[str, Any]:
    """Damage on the half of the neutral text that nothing was tuned on, and all measures under the edits."""
    effects = sweep(lm, neutral(lm)[1], [edits])
    with edited(lm, edits):
        scores = {measure: _score(bench, lm, measure) for measure in measures}
    return {
        "kl": effects.kl[0].tolist(),
        "nll": (effects.nll[0] - effects.clean_nll).tolist(),
        "tokens": effects.tokens.tolist(),
        "measures": scores,
    }


def draw(result: Result, width: float) -> dict[str, Figure]:
    """Change of skill from context and from memory, a line a disruption."""
    figures = {}
    for place, (name, plain) in enumerate(result.data.items()):
        figures["disrupt" if not place else f"disrupt-{place + 1}"] = draw_contrast(
            name, DisruptionScores.of(plain), width
        )
    return figures

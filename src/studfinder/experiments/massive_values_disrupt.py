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

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from studfinder.errors import StudfinderError, WriteFailed
from studfinder.experiments.disruptions import CLEAN, as_harmful, controls, draws_of, massive, neutral, noise_in
from studfinder.experiments.disruptions_read import (
    CONTEXT,
    MEMORY,
    DisruptionScores,
    comparisons_table,
    contrast_chart,
    disruption_notes,
    disruption_table,
)
from studfinder.measures import effects_of
from studfinder.measures.matched_facts import calibrate_facts
from studfinder.models import LM
from studfinder.records.config import option
from studfinder.studies import ModelVariant, swept, with_edits
from studfinder.studies.experiment import Bench, Experiment, Outcome, StudyConfig


@dataclass(frozen=True, kw_only=True)
class DisruptConfig(StudyConfig):
    """What is disrupted, and what is asked then."""

    limit: int = option(48, help="Items of a measure (ten of passkey and 24 of tasks at most).", least=1)
    k: tuple[int, ...] = option((1, 2), help="Largest dims of every head.", least=1, commas=True)
    lambdas: tuple[float, ...] = option((5,), help="All dims above so many times the head's mean.", commas=True)
    noise: tuple[float, ...] = option((0.5,), help="Noise in the massive dims, in units of their size.", commas=True)
    draws: int = option(2, help="Draws of what is random.", least=1)
    measures: str = option("passkey:128,256 tasks:sentiment facts", help="What else is measured, with spaces between.")
    facts_in_prompt: int = option(0, help="Facts of a relation in a prompt; 0: as many as suit the model.", least=0)


EXPERIMENT = Experiment(
    name="massive-values/disrupt",
    paper="2502.01563",
    shows="table 1",
    summary="When massive values are disrupted, do only answers from context suffer, and more than by equal damage?",
    needs="about 20 minutes with smollm2 on two cores",
    presets={"cpu": DisruptConfig()},
)
_MOST = {"passkey": 10, "tasks": 24}
"""Measures whose items are long take fewer of them."""


def run(bench: Bench, lm: LM) -> Outcome:
    """Clean scores, then every disruption on the same items."""
    own, original = bench.config, ModelVariant(CLEAN)
    count = own.facts_in_prompt or bench.once("facts in the prompt", partial(calibrate_facts, lm))
    facts, limits = [f"{CONTEXT}:{count}", f"{MEMORY}:{count}"], {one: min(own.limit, n) for one, n in _MOST.items()}
    bench.grid(lm, [original], facts, passes=())  # these have to be here, others need not
    measures = [*facts, *own.measures.split()]
    clean = bench.grid(lm, [original], measures, limits=limits, passes=(StudfinderError,))
    variants, against, left_out = _planned(bench, lm)
    edits = [one.detail for one in variants]
    effects = swept(bench, lm, "neutral text", neutral(lm)[1], edits, bench.progress)
    scored = bench.grid(lm, [original, *variants], clean.measures, limits=limits, passes=())
    rows = DisruptionScores(scored, effects, against)
    notes = [*clean.notes(), *left_out, *disruption_notes(rows)]
    return Outcome([disruption_table(rows), comparisons_table(rows)], notes, [contrast_chart(rows)])


def _planned(bench: Bench, lm: LM) -> tuple[list[ModelVariant], list[tuple[str, str]], list[str]]:
    """What is tried; which of it is noise that was tuned to the damage of which (disruption, noise); and, in sentences,
    what cannot be tried."""
    own, k = bench.config, max(bench.config.k)
    attacks = massive(lm, own.k, own.lambdas)
    there = [one for one in attacks if bench.once(f"{one.label} exists", partial(_exists, lm, one))]
    against, left_out = [], [f"{one.label}: there is no such dim." for one in attacks if one not in there]
    variants = [*there, *controls(lm, own.k, own.draws)]
    groups: list[tuple[list[ModelVariant], ModelVariant, Sequence[str]]] = [
        ([], one, ("the other dims",)) for one in there
    ]
    for std in own.noise:  # noise in the massive dims, in the others and in V: only the place differs
        name = f"noise in the {k} massive dim{'s' * (k > 1)} ({std:g} rms)"
        *judged, spare = (noise_in(lm, "the massive dims", k, std, seed) for seed in range(own.draws + 1))
        groups.append((draws_of(lm, name, judged), with_edits(lm, name, spare), ("the other dims", "V")))
    for group, of, places in groups:
        variants += group
        for place in places:
            name = f"noise in {place}, as harmful as: {of.label}"
            tuned = bench.once(f"strength of {name}", partial(as_harmful, lm, of.detail, place, k))
            if tuned["why"]:
                left_out.append(f"no {name}{tuned['why']}.")
            else:
                against.append((of.label, name))
                variants += draws_of(
                    lm, name, [noise_in(lm, place, k, tuned["std"], seed) for seed in range(own.draws)]
                )
    return variants, against, left_out


def _exists(lm: LM, attack: ModelVariant) -> bool:
    """Whether anything is above lambda: not every model has massive values."""
    try:
        effects_of(lm, neutral(lm)[1][:1], [attack.detail])
    except WriteFailed:
        raise
    except StudfinderError:
        return False
    return True

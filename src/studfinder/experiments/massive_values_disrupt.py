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

from studfinder.errors import StudfinderError
from studfinder.experiments.disruptions import as_harmful, controls, drawn, massive, neutral, noise_in
from studfinder.experiments.disruptions_read import (
    CONTEXT,
    MEMORY,
    Disrupted,
    comparisons_table,
    contrast_chart,
    notes_of,
    scores_table,
)
from studfinder.experiments.experiment import Bench, Experiment, Outcome, StudyConfig
from studfinder.measures import sweep
from studfinder.measures.matched_facts import calibrate_facts
from studfinder.models import LM
from studfinder.records.config import option
from studfinder.studies import Variant, swept, with_edits


@dataclass(frozen=True, kw_only=True)
class DisruptConfig(StudyConfig):
    """What is disrupted, and what is asked then."""

    limit: int = option(48, help="Items of a measure (ten of passkey and 24 of tasks at most).", least=1)
    k: tuple[int, ...] = option((1, 2), help="Largest dims of every head.", least=1, commas=True)
    lambdas: tuple[float, ...] = option((5.0,), help="All dims above so many times the head's mean.", commas=True)
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
CLEAN = Variant("as it is")
_MOST = {"passkey": 10, "tasks": 24}
"""Measures whose items are long take fewer of them."""


def run(bench: Bench, lm: LM) -> Outcome:
    """Clean scores, then every disruption on the same items."""
    own, plan = bench.config, _Plan(bench, lm)
    count = own.facts_in_prompt or bench.once("facts in the prompt", partial(calibrate_facts, lm))
    facts, limits = [f"{CONTEXT}:{count}", f"{MEMORY}:{count}"], {one: min(own.limit, n) for one, n in _MOST.items()}
    bench.grid(lm, [CLEAN], facts, passes=())  # these have to be here, others need not
    measures = [*facts, *own.measures.split()]
    clean = bench.grid(lm, [CLEAN], measures, limits=limits, passes=(StudfinderError,))
    plan.variants += controls(lm, own.k, own.draws)
    for attack in plan.attacks:
        plan.add_as_harmful(attack, ("the other dims",))
    for std in own.noise:
        plan.add_noise(std)
    edits = [one.detail for one in plan.variants]
    effects = swept(bench, lm, "neutral text", neutral(lm)[1], edits, bench.progress)
    scored = bench.grid(lm, [CLEAN, *plan.variants], clean.measures, limits=limits, passes=())
    rows = Disrupted(scored, effects, plan.against)
    notes = [*clean.notes(), *plan.left_out, *notes_of(rows)]
    return Outcome([scores_table(rows), comparisons_table(rows)], notes, [contrast_chart(rows)])


class _Plan:
    """What is tried.

    Attributes:
        attacks: those of the paper that this model has.
        variants: these, and all else.
        against: (disruption, the noise that was tuned to its damage).
        left_out: what cannot be tried, in sentences.
    """

    def __init__(self, bench: Bench, lm: LM) -> None:
        self.bench, self.lm, self.k, self.draws = bench, lm, max(bench.config.k), bench.config.draws
        self.attacks: list[Variant] = []
        self.against: list[tuple[str, str]] = []
        self.left_out: list[str] = []
        for attack in massive(lm, bench.config.k, bench.config.lambdas):
            if bench.once(f"{attack.label} exists", partial(self._exists, attack)):
                self.attacks.append(attack)
            else:
                self.left_out.append(f"{attack.label}: there is no such dim.")
        self.variants = [*self.attacks]

    def _exists(self, attack: Variant) -> bool:
        """Whether anything is above lambda: not every model has massive values."""
        try:
            sweep(self.lm, neutral(self.lm)[1][:1], [attack.detail])
        except StudfinderError:
            return False
        return True

    def add_noise(self, std: float) -> None:
        """Noise in the massive dims, and noise of the same damage in the others and in V: only the place differs."""
        name = f"noise in the {self.k} massive dim{'s' * (self.k > 1)} ({std:g} rms)"
        *judged, spare = (noise_in(self.lm, "the massive dims", self.k, std, seed) for seed in range(self.draws + 1))
        self.variants += drawn(self.lm, name, judged)
        self.add_as_harmful(with_edits(self.lm, name, spare), ("the other dims", "V"))

    def add_as_harmful(self, of: Variant, places: Sequence[str]) -> None:
        """Noise elsewhere, tuned to the damage of a disruption; what cannot be matched is left out, and said."""
        for place in places:
            name = f"noise in {place}, as harmful as: {of.label}"
            tuned = self.bench.once(f"strength of {name}", partial(as_harmful, self.lm, of.detail, place, self.k))
            if tuned["why"]:
                self.left_out.append(f"no {name}{tuned['why']}.")
                continue
            self.against.append((of.label, name))
            draws = [noise_in(self.lm, place, self.k, tuned["std"], seed) for seed in range(self.draws)]
            self.variants += drawn(self.lm, name, draws)

"""Disrupting massive values (Jin et al. 2025, arXiv 2502.01563, table 1): do only answers from context suffer?

What it asks: the paper sets the largest dims of every head of Q and K to one mean; tasks that read their prompt
collapse, questions about facts lose little, and the smallest dims (its control) do nothing. Is that so here, and is it
about massive values, or would any damage of that size do it? How: skill above chance in tasks of both kinds, as a share
of what the model has as it is; controls: the smallest dims, random ones, and noise in all other dims of Q and K that is
tuned to the same KL on neutral text. What to look at: the last table. It holds the loss in context less the loss in
memory against the same under equally harmful noise, for tasks of each kind, and for the same questions after the same
prompt, where one name decides whether the answer is read or known.

The paper's contrast is confounded: generated answers with a floor near 0 % for context, yes or no with a floor of 50 %
for facts. Its control is the easiest there is, as the smallest dims carry no score. Its passkey prompts for Llama and
Gemma hold no question. Ours: log-probabilities in squares whose chance is exact (see `measures.choices`), a question.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from studfinder.errors import StudfinderError
from studfinder.experiments.disruptions import CLEAN, as_harmful, controls, draws_of, massive, neutral, noise_elsewhere
from studfinder.experiments.disruptions_claims import DISRUPTION_CLAIMS, disruption_claims
from studfinder.experiments.disruptions_read import (
    DisruptionScores,
    comparisons_table,
    disruption_notes,
    kept_chart,
    scores_tables,
)
from studfinder.models import LM
from studfinder.records.config import option
from studfinder.studies import ModelVariant, swept
from studfinder.studies.experiment import Bench, Experiment, Outcome, StudyConfig
from studfinder.texts.relations import DOMAINS


@dataclass(frozen=True, kw_only=True)
class DisruptConfig(StudyConfig):
    """What is disrupted, and what is asked then."""

    limit: int = option(24, help="Questions of a measure (half as many by yes and no: two prompts each).", least=1)
    k: tuple[int, ...] = option((1, 2), help="Largest dims of a head; the first count is judged.", least=1, commas=True)
    draws: int = option(2, help="Draws of what is random.", least=1)
    context: str = option(
        "lookup:4 in-context:words in-context:numbers", help="Tasks that read their prompt, with spaces between."
    )
    memory: str = option(
        " ".join(f"{kind}:{domain}" for kind in ("facts", "yes-no") for domain in DOMAINS),
        help="Questions about facts, with spaces between.",
    )
    facts_in_prompt: int = option(4, help="Facts in the prompt of the same questions from both.", least=2)
    passkeys: int = option(
        105, help="Passkeys, asked of what is massive and of noise as harmful as the first.", least=1
    )
    passkey: str = option("128,256,512,1024", help="Their prompts' lengths in tokens.")


EXPERIMENT = Experiment(
    name="massive-values/disrupt",
    paper="2502.01563",
    shows="table 1",
    summary="When massive values are disrupted, do only answers from context suffer, and more than by equal damage?",
    needs="about a quarter of an hour with smollm2 in fp32 on one core (12 minutes of its time)",
    presets={"cpu": DisruptConfig()},
    claims=DISRUPTION_CLAIMS,
    spread=True,
)


def run(bench: Bench, lm: LM) -> Outcome:
    """Clean scores, then every disruption on the same items."""
    own, original = bench.config, ModelVariant(CLEAN)
    pair = [f"{name}:{own.facts_in_prompt}" for name in ("facts-in-context", "facts-parametric-matched")]
    sides = {"context": own.context.split(), "memory": own.memory.split()}
    key, limits = f"passkey:{own.passkey}", {"passkey": own.passkeys, "yes-no": max(1, own.limit // 2)}
    every = [*pair, *sides["context"], *sides["memory"], key]
    clean = bench.grid(lm, [original], every, limits=limits, passes=(StudfinderError,))
    asked = [name for name in clean.measures if name != key]
    attacks = massive(lm, own.k)
    noises = [_as_noise(bench, lm, one, k) for one, k in zip(attacks, own.k, strict=True)]
    variants = [*attacks, *controls(lm, max(own.k), own.draws), *(one for noise, _ in noises for one in noise)]
    effects = swept(bench, lm, "neutral text", neutral(lm)[1], [one.detail for one in variants], bench.progress)
    scored = bench.grid(lm, [original, *variants], asked, limits=limits, passes=())
    some = [original, attacks[0], *noises[0][0][:1]]
    keys = bench.grid(lm, some, [key], limits=limits) if key in clean.measures else None
    against = {one.label: noise[0].family for one, (noise, _) in zip(attacks, noises, strict=True) if noise}
    there = {side: [name for name in names if name in scored.measures] for side, names in sides.items()}
    rows = DisruptionScores(scored, keys, effects, against, {**there, "asked": pair[:1], "known": pair[1:]})
    notes = [*clean.notes(), *(why for _, why in noises if why), *disruption_notes(rows)]
    tables = [*scores_tables(rows), comparisons_table(rows)]
    return Outcome(tables, notes, [kept_chart(rows)], claims=disruption_claims(rows, max(own.k)))


def _as_noise(bench: Bench, lm: LM, attack: ModelVariant, k: int) -> tuple[list[ModelVariant], str]:
    """Draws of noise that is tuned to the damage of an attack; or, in a sentence, why there is none."""
    name = f"noise in the other dims, as harmful as: {attack.label}"
    tuned = bench.once(f"strength of {name}", partial(as_harmful, lm, attack.detail, k))
    if tuned["why"]:
        return [], f"no {name}{tuned['why']}."
    draws = range(bench.config.draws)
    return draws_of(lm, name, [noise_elsewhere(lm, k, tuned["std"], seed) for seed in draws]), ""

"""One score a file; effects.py measures many changes in one reading."""

from studfinder.measures.damage import DamageMatch, damage_matched
from studfinder.measures.effects import Effects, effects_of
from studfinder.measures.floor import NetEffect, net_effect
from studfinder.measures.likelihood import Likelihood, batch_size, log_likelihoods, tokens_a_pass
from studfinder.measures.matched_facts import (
    Contrast,
    contrast,
    facts_in_context,
    facts_parametric_matched,
)
from studfinder.measures.perplexity import perplexity
from studfinder.measures.registry import MEASURES, Measure, measure_named
from studfinder.measures.scores import Scores, compare, scored
from studfinder.records.public import public

__all__ = [
    "MEASURES",
    "Contrast",
    "DamageMatch",
    "Effects",
    "Likelihood",
    "Measure",
    "NetEffect",
    "Scores",
    "batch_size",
    "compare",
    "contrast",
    "damage_matched",
    "effects_of",
    "facts_in_context",
    "facts_parametric_matched",
    "log_likelihoods",
    "measure_named",
    "net_effect",
    "perplexity",
    "scored",
    "tokens_a_pass",
]

public(globals())

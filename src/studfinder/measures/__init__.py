"""One score a file; sweep.py runs many edits and shares the work."""

from studfinder.measures.damage import DamageMatch, damage_matched
from studfinder.measures.perplexity import perplexity
from studfinder.measures.registry import REGISTRY, Measure, measure_named
from studfinder.measures.scores import Scores, compare, scored
from studfinder.measures.sweep import Effects, next_token, sweep

__all__ = [
    "REGISTRY",
    "DamageMatch",
    "Effects",
    "Measure",
    "Scores",
    "compare",
    "damage_matched",
    "measure_named",
    "next_token",
    "perplexity",
    "scored",
    "sweep",
]

"""One score a file; sweep.py runs many edits and shares the work."""

from studfinder.measures.damage import DamageMatch, damage_matched
from studfinder.measures.perplexity import perplexity
from studfinder.measures.scores import Scores
from studfinder.measures.sweep import Effects, next_token, sweep

__all__ = ["DamageMatch", "Effects", "Scores", "damage_matched", "next_token", "perplexity", "sweep"]

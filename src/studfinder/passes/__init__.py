"""The one engine: streams of hidden states carried through a model block by block."""

from studfinder.passes.blocks import Blocks, Given, State
from studfinder.passes.gradients import Gradients, gradients
from studfinder.passes.objectives import NO_LABEL, Objective, likelihood, sampled_likelihood
from studfinder.passes.streams import BlockRuns, Ends, Stream, carry

__all__ = [
    "NO_LABEL",
    "BlockRuns",
    "Blocks",
    "Ends",
    "Given",
    "Gradients",
    "Objective",
    "State",
    "Stream",
    "carry",
    "gradients",
    "likelihood",
    "sampled_likelihood",
]

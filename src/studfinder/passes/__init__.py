"""The one engine: streams of hidden states carried through a model block by block."""

from studfinder.passes.blocks import Blocks, Given, State
from studfinder.passes.gradients import Gradients, gradients
from studfinder.passes.objectives import NO_LABEL, Objective, likelihood, sampled_likelihood
from studfinder.passes.spool import Spool, on_disk
from studfinder.passes.streams import BlockRuns, Ends, Stream, carry, in_parts

__all__ = [
    "NO_LABEL",
    "BlockRuns",
    "Blocks",
    "Ends",
    "Given",
    "Gradients",
    "Objective",
    "Spool",
    "State",
    "Stream",
    "carry",
    "gradients",
    "in_parts",
    "likelihood",
    "on_disk",
    "sampled_likelihood",
]

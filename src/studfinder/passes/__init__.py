"""The one engine: streams of hidden states carried through a model block by block."""

from studfinder.passes.blocks import Blocks, Given, State
from studfinder.passes.streams import Ends, Stream, Work, carry

__all__ = ["Blocks", "Ends", "Given", "State", "Stream", "Work", "carry"]

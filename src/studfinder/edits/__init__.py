"""Select which numbers, and change them for a while."""

from studfinder.edits.apply import edited
from studfinder.edits.controls import matched_controls
from studfinder.edits.edit import Edit, Weights, edits_hash, layer_of, scale, zero
from studfinder.edits.select import channel, entry, neuron, top_fraction

__all__ = [
    "Edit",
    "Weights",
    "channel",
    "edited",
    "edits_hash",
    "entry",
    "layer_of",
    "matched_controls",
    "neuron",
    "scale",
    "top_fraction",
    "zero",
]

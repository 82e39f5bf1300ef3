"""Select which numbers, and change them for a while."""

from studfinder.edits.apply import edited
from studfinder.edits.controls import controls_by_prediction, matched_controls
from studfinder.edits.disruption import dims, massive_value_disruption
from studfinder.edits.edit import Edit, EditList, NullEdit, SiteEdit, WeightEdit, Weights, edits_hash, layer_of
from studfinder.edits.makers import (
    Activations,
    Editable,
    constant_only,
    deviation_only,
    mean,
    noise,
    null,
    restore,
    restore_output,
    scale,
    set_to,
    shuffle,
    zero,
)
from studfinder.edits.names import Names
from studfinder.edits.select import Selection, channel, entry, meant, meant_numbers, neuron, selected, top_fraction
from studfinder.edits.selections import (
    AboveLambda,
    Coordinates,
    Entries,
    Everything,
    LargestEntry,
    MatchedDims,
    RandomDims,
    TopDims,
)
from studfinder.edits.spec import edits_of, parse_edits
from studfinder.edits.streams import null_streams, replaced_stream, stream_of
from studfinder.edits.tied import TiedWeightsWarning, tied_notes
from studfinder.records.public import public

__all__ = [
    "AboveLambda",
    "Activations",
    "Coordinates",
    "Edit",
    "EditList",
    "Editable",
    "Entries",
    "Everything",
    "LargestEntry",
    "MatchedDims",
    "Names",
    "NullEdit",
    "RandomDims",
    "Selection",
    "SiteEdit",
    "TiedWeightsWarning",
    "TopDims",
    "WeightEdit",
    "Weights",
    "channel",
    "constant_only",
    "controls_by_prediction",
    "deviation_only",
    "dims",
    "edited",
    "edits_hash",
    "edits_of",
    "entry",
    "layer_of",
    "massive_value_disruption",
    "matched_controls",
    "mean",
    "meant",
    "meant_numbers",
    "neuron",
    "noise",
    "null",
    "null_streams",
    "parse_edits",
    "replaced_stream",
    "restore",
    "restore_output",
    "scale",
    "selected",
    "set_to",
    "shuffle",
    "stream_of",
    "tied_notes",
    "top_fraction",
    "zero",
]

public(globals())

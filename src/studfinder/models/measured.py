"""The anatomy of a live model, measured once: kept for the same configuration, class and shapes."""

from __future__ import annotations

from typing import Any

from studfinder.models.anatomy import Anatomy
from studfinder.models.probe import probed
from studfinder.models.trace import TOKENS


def anatomy_of(model: Any) -> Anatomy:
    """The map of a live model.

    Raises:
        StudfinderError: it has no list of blocks, or cannot be run on token ids.
    """
    config = model.config.get_text_config(decoder=True)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    blocks, layers, handed = probed(model, int(vocabulary))
    axis = None if handed.dim() < 4 else 2 if handed.shape[1] == TOKENS else 0
    streams = 1 if axis is None else handed.shape[axis]
    first = next((writer for layer in layers for writer in layer.writers), None)
    return Anatomy(
        architecture=model.config.model_type,
        decoder=blocks.rpartition(".")[0],
        layers=layers,
        hidden=handed.shape[-1] * streams,
        intermediate=0 if first is None else first.view(model.get_parameter(first.parameter)).shape[1],
        vocabulary=int(vocabulary),
        max_positions=getattr(config, "max_position_embeddings", None),
        streams=streams,
        stream_axis=axis,
    )

"""The anatomy of a live model, measured once: kept for the same configuration, class and shapes."""

from __future__ import annotations

from typing import Any

from studfinder.models.anatomy import Anatomy
from studfinder.models.probe import probe


def anatomy_of(model: Any) -> Anatomy:
    """The map of a live model.

    Raises:
        StudfinderError: it has no list of blocks, or cannot be run on token ids.
    """
    config = model.config.get_text_config(decoder=True)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    blocks, layers = probe(model, int(vocabulary))
    first = next((writer for layer in layers for writer in layer.writers), None)
    return Anatomy(
        architecture=model.config.model_type,
        decoder=blocks.rpartition(".")[0],
        layers=layers,
        hidden=int(config.hidden_size),
        intermediate=0 if first is None else first.view(model.get_parameter(first.parameter)).shape[1],
        vocabulary=int(vocabulary),
        max_positions=getattr(config, "max_position_embeddings", None),
    )

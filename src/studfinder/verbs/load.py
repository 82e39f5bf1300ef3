"""sf.load: models.load, with the saved attention variants known.

A checkpoint of model_type "studfinder-llama" is built by a class of the room `attention`, which `models` may not
import. Importing that room registers its classes with transformers, in a fraction of the time transformers itself
takes to load.
"""

from __future__ import annotations

from typing import Any

import studfinder.attention  # noqa: F401
from studfinder.errors import StudfinderError
from studfinder.models import LM, load
from studfinder.records.config import described
from studfinder.records.loading import LoadConfig, ReadConfig, SourceConfig

__all__ = ["load", "load_as", "options_of"]


def load_as(model: Any, config: SourceConfig, **more: Any) -> LM:
    """What a verb is given, as an LM: what is no model yet is loaded as the config says.

    Raises:
        StudfinderError: `load` does; or it is loaded already, and the config says how.
    """
    options = options_of(config)
    if not isinstance(model, LM):
        # What is only read is not cast whole: that would take twice the memory.
        return load(model, **{"carried": isinstance(config, ReadConfig), **options, **more})
    if options:
        raise StudfinderError(
            f"{next(iter(options))} of a model that is loaded already", expected="its name", do="Or say it to sf.load"
        )
    return model


def options_of(config: SourceConfig) -> dict[str, Any]:
    """What a config says about loading that is not the default."""
    kind = next(kind for kind in (ReadConfig, LoadConfig, SourceConfig) if isinstance(config, kind))
    values = ((one.name, getattr(config, one.name), one.default) for one in described(kind))
    return {name: value for name, value, default in values if value != default}

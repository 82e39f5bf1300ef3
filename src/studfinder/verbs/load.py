"""sf.load: models.load, with the saved attention variants known.

A checkpoint of model_type "studfinder-llama" is built by a class of the room `attention`, which `models` may not
import. Importing that room registers its classes with transformers, in a fraction of the time transformers itself
takes to load.
"""

import studfinder.attention  # noqa: F401
from studfinder.models import load

__all__ = ["load"]

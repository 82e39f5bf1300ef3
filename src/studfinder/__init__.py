"""studfinder finds the load-bearing numbers of a language model before anyone cuts into it.

The public names are loaded when first used, so that `import studfinder` stays fast and does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from studfinder.attention import ALiBi as ALiBi
    from studfinder.attention import AttentionBias as AttentionBias
    from studfinder.attention import ClippedSoftmax as ClippedSoftmax
    from studfinder.attention import Differential as Differential
    from studfinder.attention import Gated as Gated
    from studfinder.attention import KVShift as KVShift
    from studfinder.attention import NoPE as NoPE
    from studfinder.attention import RoPE as RoPE
    from studfinder.attention import SinkLogit as SinkLogit
    from studfinder.attention import SoftmaxOne as SoftmaxOne
    from studfinder.attention import Softpick as Softpick
    from studfinder.attention import convert as convert
    from studfinder.attention import import_kernels as import_kernels
    from studfinder.attention import parameter_groups as parameter_groups
    from studfinder.attention import shift_cache as shift_cache
    from studfinder.edits import edited as edited
    from studfinder.edits import scale as scale
    from studfinder.edits import zero as zero
    from studfinder.errors import StudfinderError as StudfinderError
    from studfinder.measures import next_token as next_token
    from studfinder.measures import perplexity as perplexity
    from studfinder.models import LM as LM
    from studfinder.records import Findings as Findings
    from studfinder.verbs.load import load as load
    from studfinder.verbs.scan import scan as scan

__version__ = "0.1.0"

_PUBLIC = {
    "ALiBi": "studfinder.attention",
    "AttentionBias": "studfinder.attention",
    "ClippedSoftmax": "studfinder.attention",
    "Differential": "studfinder.attention",
    "Gated": "studfinder.attention",
    "KVShift": "studfinder.attention",
    "NoPE": "studfinder.attention",
    "RoPE": "studfinder.attention",
    "SinkLogit": "studfinder.attention",
    "SoftmaxOne": "studfinder.attention",
    "Softpick": "studfinder.attention",
    "convert": "studfinder.attention",
    "import_kernels": "studfinder.attention",
    "parameter_groups": "studfinder.attention",
    "shift_cache": "studfinder.attention",
    "Findings": "studfinder.records",
    "LM": "studfinder.models",
    "StudfinderError": "studfinder.errors",
    "edited": "studfinder.edits",
    "load": "studfinder.verbs.load",
    "next_token": "studfinder.measures",
    "perplexity": "studfinder.measures",
    "scale": "studfinder.edits",
    "zero": "studfinder.edits",
    "scan": "studfinder.verbs.scan",
}

__all__ = ["LM", "Findings", "StudfinderError", "__version__", "load", "scan"]


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'studfinder' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])

"""studfinder finds the load-bearing numbers of a language model before anyone cuts into it.

The public names are loaded when first used, so that `import studfinder` stays fast and does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from studfinder.errors import StudfinderError as StudfinderError
    from studfinder.models import LM as LM
    from studfinder.models import load as load
    from studfinder.records import Findings as Findings
    from studfinder.verbs.scan import scan as scan

__version__ = "0.1.0"

_PUBLIC = {
    "Findings": "studfinder.records",
    "LM": "studfinder.models",
    "StudfinderError": "studfinder.errors",
    "load": "studfinder.models",
    "scan": "studfinder.verbs.scan",
}

__all__ = ["Findings", "LM", "StudfinderError", "__version__", "load", "scan"]


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'studfinder' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])

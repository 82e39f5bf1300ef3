"""Which of several processes this is."""

from __future__ import annotations

import os


def first_process() -> bool:
    """Whether this process is the one that writes and prints: the only one, or the first that `accelerate launch` or
    torchrun started."""
    return int(os.environ.get("RANK", 0)) == 0

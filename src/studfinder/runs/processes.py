"""Which of several processes this is."""

from __future__ import annotations

import os

_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun and `accelerate launch` set together. A stray RANK alone is no launch: believing it would make a run
write nothing."""


def process_count() -> int:
    """How many processes were launched together."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _LAUNCHED) else 1


def first_process() -> bool:
    """Whether this process is the one that writes and prints: the only one, or the first of those launched together."""
    return process_count() == 1 or int(os.environ["RANK"]) == 0

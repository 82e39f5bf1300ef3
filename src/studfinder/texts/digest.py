"""What was scored, in twelve characters."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any


def digest(ids: Sequence[Any]) -> str:
    """First twelve hex digits of the SHA-256 of (nested) token ids: only runs on the same items compare."""
    return hashlib.sha256(repr(ids).encode()).hexdigest()[:12]

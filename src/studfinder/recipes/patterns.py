"""Patterns that stand in a user's file."""

from __future__ import annotations

import re

from studfinder.errors import StudfinderError

_LONGEST = 2000


def compiled(pattern: str) -> re.Pattern[str]:
    """A regular expression of a user's file. Raises StudfinderError where it is none."""
    try:
        if len(pattern) > _LONGEST:
            raise ValueError("it is too long")
        return re.compile(pattern)
    except (re.error, ValueError, OverflowError, RecursionError) as error:
        raise StudfinderError(f"{pattern[:80]!r} is no regular expression ({error})") from None

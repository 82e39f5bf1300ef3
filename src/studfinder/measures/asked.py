"""What a measure is asked for, checked: numbers behind its name, items, room in the model's window."""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any

from studfinder.errors import NotApplicable, StudfinderError
from studfinder.models import LM
from studfinder.records.outside import whole_number

Advance = Callable[[int], Any]
"""Called with the number of items that were done."""


def number_asked(given: object, measure: str, least: int, what: str) -> int:
    """The number behind a measure's name. Raises StudfinderError where something else is written there."""
    number = whole_number(given) or 0
    if number < least:
        raise StudfinderError(f"{measure}:{given}", expected=f"a number of {what} from {least} up")
    return number


def sizes_asked(given: str, measure: str) -> tuple[int, ...]:
    """Sizes behind a measure's name, "128,256". Raises StudfinderError where something else is written there."""
    sizes = [whole_number(part) for part in given.split(",")]
    if not all(sizes):
        raise StudfinderError(f"{measure}:{given}", expected=f"numbers, e.g. {measure}:128,256")
    return tuple(size for size in sizes if size)


def check_items(measure: str, items: Sized) -> None:
    """Raise NotApplicable where nothing is to be measured."""
    if not len(items):
        raise NotApplicable(f"{measure} has no items", expected="at least one")


def check_window(lm: LM, measure: str, tokens: int) -> None:
    """Raise NotApplicable if so many tokens are more than the model reads."""
    window = lm.anatomy.max_positions
    if window is not None and tokens > window:
        raise NotApplicable(f"{measure}: {tokens} tokens", expected=f"no more than the model's window of {window}")

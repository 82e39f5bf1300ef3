"""The terminal, for tables and colours: what it is given is text, and never markup."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from studfinder.visible import visible


class Screen(Console):
    """A rich console that shows every string as it is: `[red]` and `:boom:` stay what they are, and what cannot be seen
    is made visible (a line break too, so that a cell is a line). Colours come from `style=`, or from `Text`.

    Args:
        width: in characters, where stdout has no width of its own: a pipe or a log.
    """

    def __init__(self, width: int = 140, **options: Any) -> None:
        if not sys.stdout.isatty():
            options.setdefault("width", width)
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:  # every string of a line, a cell or a title comes by here
        return super().render_str(visible(text), **{**options, "markup": False, "emoji": False})

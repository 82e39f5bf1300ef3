"""Records and arrays -> terminal, Markdown, figures, one-file HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from studfinder.report.terminal import print_candidates, print_findings

if TYPE_CHECKING:
    from studfinder.report.comparison import print_comparison as print_comparison
    from studfinder.report.html import comparison_page as comparison_page
    from studfinder.report.html import page as page

__all__ = ["comparison_page", "page", "print_candidates", "print_comparison", "print_findings"]

_LATER = {
    "comparison_page": "studfinder.report.html",
    "page": "studfinder.report.html",
    "print_comparison": "studfinder.report.comparison",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:  # matplotlib and jinja2 are loaded when a page is drawn, not when a table is printed
        from importlib import import_module

        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

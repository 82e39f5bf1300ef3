"""Records and arrays -> terminal, Markdown, figures, one-file HTML."""

from studfinder.report.terminal import print_findings

__all__ = ["print_findings"]

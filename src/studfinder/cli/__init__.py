"""The command line: one verb a file. Parse, call the verb, print."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of `studfinder`. Exit codes: 0, 2 (a user's mistake), 130 (Ctrl-C)."""
    from studfinder.cli.app import run

    sys.exit(run(sys.argv[1:]))

"""The command line: one verb a file. Parse, call the verb, print."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of `studfinder`. Exit codes: 0, 1 (an internal error), 2 (a user's mistake), 130 (Ctrl-C)."""
    from studfinder.cli.process import INTERRUPTED, ends_at_once, open_streams

    open_streams()
    try:
        with ends_at_once():
            from studfinder.cli.app import run_cli
        code = run_cli(sys.argv[1:])
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        code = 130
    with ends_at_once():  # what is left to do is to end
        sys.exit(code)

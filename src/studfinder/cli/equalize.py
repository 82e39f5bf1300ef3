"""studfinder equalize"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from studfinder.cli import options as o
from studfinder.cli.faces import face
from studfinder.cli.progress import progress_bar
from studfinder.cli.shown import say_next
from studfinder.verbs.equalize_config import EqualizeConfig
from studfinder.visible import say, say_json

EXAMPLES = """Examples:

\b
  studfinder equalize ./m --findings runs/m/scan-... --out m-equal    super weights' columns rebalanced, biases of K
  studfinder equalize ./m --only key-bias --context 8192 --out m-kv   what a cache in 8 bits cannot hold
  studfinder equalize ./m --findings RUN --dry-run                    what would be changed
  studfinder equalize ./m --findings RUN                              measured, nothing written
"""


@face(EqualizeConfig)
def command(
    model: o.Model,
    config: EqualizeConfig,
    as_json: o.Json = False,
    dry_run: o.DryRun = False,
    debug: o.Debug = False,
) -> None:
    """Write an equivalent checkpoint that rounds better, for any quantiser and engine, with the proof that it is one.

    Nothing is written where there is nothing to gain, or where the changed model is not shown to be the same.
    """
    from studfinder.records import to_json
    from studfinder.report.cells import print_sheet
    from studfinder.report.equivalence import equivalence_tables
    from studfinder.verbs.equalize import find_changes, plan_equalize, run_equalize

    with progress_bar(as_json) as progress:
        plan = plan_equalize(model, replace(config, progress=progress))
        if dry_run:
            changes, notes, text = find_changes(plan)
            for one in changes:
                say(f"would change {one.words}")
            for note in notes:
                say(f"left alone   {note}")
            say(f"{len(changes)} changes, chosen on {text}" if changes else "nothing to gain here")
            return
        made = run_equalize(plan, command="studfinder " + " ".join(sys.argv[1:]))
    if as_json:
        say_json(to_json(made, indent=1))
        return
    print_sheet("equalize", equivalence_tables(made), [f"left alone: {note}" for note in made.notes], None)
    say(made.verdict)
    if config.out is not None and made.changes:
        say(f"written   {config.out}")
    say_next(made, Path(config.out or "EQUAL"))

"""studfinder diagnose"""

from __future__ import annotations

import sys
from dataclasses import replace

from studfinder.cli import options as o
from studfinder.cli.faces import face
from studfinder.cli.progress import progress_bar
from studfinder.cli.shown import gated, place_of, say_if_older, say_next
from studfinder.verbs.configs import DiagnoseConfig
from studfinder.visible import say, say_json

EXAMPLES = """Examples:

\b
  studfinder diagnose ./m-w4 --against ./m                  what broke it, and what mends it
  studfinder diagnose ./m-w4                                the original that its card names
  studfinder diagnose ./m-w4 --against ./m --outputs vllm.jsonl     is it the engine?
  studfinder diagnose ./m-w4 --against ./m --fail-if ill --fail-if "kl.high>0.1"     a gate: exit code 1
"""


@face(DiagnoseConfig)
def command(
    model: o.Model,
    config: DiagnoseConfig,
    as_json: o.Json = False,
    dry_run: o.DryRun = False,
    debug: o.Debug = False,
) -> None:
    """Say what a quantised or edited checkpoint lost against what it was made from, where, and why.

    Weights are compared part by part, settings and tokenizers too; every part is put back alone, and what that wins is
    measured.
    """
    from studfinder.verbs.diagnose import DIAGNOSIS_FILE, diagnose_run, gate_values, plan_diagnose, run_diagnose
    from studfinder.verbs.gate import failed_gates, parse_gates

    gates = parse_gates(config.fail_if, ("ill",))
    with progress_bar(as_json) as progress:
        plan = plan_diagnose(model, replace(config, progress=progress))
        if dry_run:
            where = place_of(diagnose_run(plan), config.overwrite)
            say(f"would compare {plan.made.source.id} with {plan.original.source.id}: {where}")
            return
        found, folder = run_diagnose(plan, write=True, command="studfinder " + " ".join(sys.argv[1:]))
    assert folder is not None
    failed = failed_gates(gates, gate_values(found))
    say_if_older(found.run)
    if as_json:
        say_json((folder / DIAGNOSIS_FILE).read_text(encoding="utf-8"))
    else:
        from studfinder.report.cells import print_sheet
        from studfinder.report.diagnosis import diagnosis_tables

        print_sheet("diagnosis", diagnosis_tables(found), [], folder)
        say(found.verdict)
        if found.mend and ": studfinder " not in found.mend:
            say(f"mend      {found.mend}")
        say_next(found, folder)
    gated(failed)

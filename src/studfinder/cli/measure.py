"""studfinder measure"""

from __future__ import annotations

import sys

from studfinder.cli import options as o
from studfinder.cli.faces import face
from studfinder.cli.progress import progress_bar
from studfinder.cli.shown import gated, place_of, say_if_older, say_next
from studfinder.verbs.configs import MeasureConfig
from studfinder.visible import say, say_json

EXAMPLES = """Examples:

\b
  studfinder measure                                                 the built-in model's scorecard
  studfinder measure smollm2 --edit zero:runs/smollm2/scan-4428c2f28f --limit 100
  studfinder measure smollm2 --edit pooled-mean:query+key.top1 --measures perplexity,passkey,facts
  studfinder measure ./my-w4 --against Qwen/Qwen3-8B                 what a quantised model lost
  studfinder measure ./my-w4 --against ./mine --measures kl,agreement --fail-if "kl>0.1"     a gate: exit code 1
  studfinder measure smollm2 --tasks piqa,arc_easy --limit 200       public tasks, through lm-eval
"""


@face(MeasureConfig)
def command(
    config: MeasureConfig,
    model: o.Model = "smollm2",
    as_json: o.Json = False,
    dry_run: o.DryRun = False,
    debug: o.Debug = False,
) -> None:
    """Measure what a model can do: fluency, context, memory and reasoning, with intervals.

    With --edit, before and after the edit on the same items; with --against, beside another model. Interrupted, the
    same command goes on where it stopped.
    """
    from dataclasses import replace

    from studfinder.verbs.gate import WORSE, failed_gates, parse_gates
    from studfinder.verbs.measure import SCORECARD_FILE, card_values, measure_run, plan_measure, run_measure

    gates = parse_gates(config.fail_if, (WORSE,))

    with progress_bar(as_json) as progress:
        plan = plan_measure(model, replace(config, progress=progress))
        if dry_run:
            limit, edits = config.limit, len(plan.edits)
            say(
                f"would measure {model}: {', '.join(plan.measures)}"
                + f", at most {limit} items of each" * (limit is not None)
                + f", before and after {edits} edits" * bool(edits)
                + f", beside {config.against}" * (config.against is not None)
                + f": {place_of(measure_run(plan), config.overwrite)}"
            )
            return
        card, folder = run_measure(plan, write=True, command="studfinder " + " ".join(sys.argv[1:]))
    assert folder is not None
    failed = failed_gates(gates, card_values(card))
    say_if_older(card.run)
    if as_json:
        say_json((folder / SCORECARD_FILE).read_text(encoding="utf-8"))
    else:
        from studfinder.report.cells import print_sheet
        from studfinder.report.scorecard import tables

        print_sheet("scorecard", tables([card]), [f"edit: {words}" for words in card.edits], folder)
        say_next(card, folder)
    gated(failed)

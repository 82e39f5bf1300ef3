"""studfinder scan"""

from __future__ import annotations

import sys

from studfinder.cli import options as o
from studfinder.cli.faces import face
from studfinder.cli.progress import progress_bar
from studfinder.cli.shown import place_of, say_if_older, say_next
from studfinder.verbs.configs import ScanConfig
from studfinder.visible import say, say_json

EXAMPLES = """Examples:

\b
  studfinder scan                                  the built-in SmolLM2-135M-Instruct
  studfinder scan Qwen/Qwen3-8B --out runs/qwen    a hub model, into a folder of yours
  studfinder scan ./my-model --prompts mine.jsonl  your own prompts
  studfinder scan gemma3-270m --no-bos --json      without BOS, the record on stdout
"""


@face(ScanConfig)
def command(
    config: ScanConfig,
    model: o.Model = "smollm2",
    as_json: o.Json = False,
    dry_run: o.DryRun = False,
    debug: o.Debug = False,
) -> None:
    """Find a model's super weights, massive activations, massive values and attention sinks, and prove what the
    super weights carry.

    One forward pass over a dozen prompts finds them, and a backward pass ranks every number of the model, gains and
    biases too, by what it predicts of it; then the model runs without each candidate on a proof text, beside matched
    controls. The model itself is never changed.
    """
    from dataclasses import replace

    from studfinder.errors import StudfinderError
    from studfinder.records import Findings, to_json
    from studfinder.report import print_candidates, print_findings
    from studfinder.verbs.scan import plan_scan, run_scan, scan_run

    if config.folder is not None and config.folder.is_file():  # said before a model is loaded for nothing
        raise StudfinderError(f"--out {config.out} is a file", expected="a folder, or a name that does not exist yet")
    with progress_bar(as_json) as progress:
        plan = plan_scan(model, replace(config, progress=progress))
        if dry_run:
            weights = sum(p.nbytes for p in plan.lm.model.parameters()) / 1e6
            say(
                f"would scan {model} ({plan.model.parameters / 1e6:,.0f} M parameters, {weights:,.0f} MB of weights) "
                f"on {len(plan.prompts.tokens)} prompts, {plan.prompts.total:,} tokens"
                + ", with the paper's loop (zero, look again)" * config.iterative
                + ", rank every number by a backward pass" * plan.census
                + f", and prove up to {config.most} candidates on 4,000 tokens" * plan.prove
                + f": {place_of(scan_run(plan), config.overwrite)}"
            )
            return

        def seen(found: Findings) -> None:
            progress.close()
            if found.super_weights and not as_json:
                print_candidates(found)

        findings, folder = run_scan(plan, write=True, command="studfinder " + " ".join(sys.argv[1:]), seen=seen)
    assert folder is not None
    say_if_older(findings.run)
    if as_json:
        say_json(to_json(findings, indent=1))  # also where a run of version 1 is shown
    else:
        print_findings(findings, folder)
        say_next(findings, folder)

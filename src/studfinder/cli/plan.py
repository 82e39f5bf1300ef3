"""studfinder plan"""

from __future__ import annotations

import sys
from dataclasses import replace

from studfinder.cli import options as o
from studfinder.cli.faces import face
from studfinder.cli.progress import progress_bar
from studfinder.cli.shown import place_of, say_if_older, say_next
from studfinder.verbs.configs import PlanConfig
from studfinder.visible import say, say_json

EXAMPLES = """Examples:

\b
  studfinder plan smollm2 --bits 4.5                       a format for every fused group at 4.5 bits a weight
  studfinder plan ./my-model --size 4GB --memory 8GB       the whole file in 4 GB, of a model larger than memory
  studfinder plan ./my-model --kl 0.05                     the cheapest plan within 0.05 nats per token
  studfinder plan ./my-model --bits 4.5 --formats int4-g128,int8-channel,16
  studfinder plan ./my-model --bits 4.5 --for llm-compressor --for gptqmodel
  studfinder plan ./my-model --bits 5 --from RUN           another budget from costs that are known
"""


@face(PlanConfig)
def command(
    config: PlanConfig,
    model: o.Model = "smollm2",
    as_json: o.Json = False,
    dry_run: o.DryRun = False,
    debug: o.Debug = False,
) -> None:
    """Choose a format for every fused group of a model within a budget of bits, bytes or KL, and judge the choice.

    One backward pass a window predicts, in nats, what rounding each group costs in every format; a solver chooses; and
    the plan is held against one format for all, simple rules and groups at random, on text that chose nothing.
    Interrupted, the same command goes on where it stopped.
    """
    from studfinder.report.cells import print_sheet
    from studfinder.report.plan import plan_notes, plan_tables
    from studfinder.verbs.plan import PLAN_FILE, plan_run, ready_plan, run_plan

    if config.folder is not None and config.folder.is_file():  # said before a model is loaded for nothing
        from studfinder.errors import StudfinderError

        raise StudfinderError(f"--out {config.out} is a file", expected="a folder, or a name that does not exist yet")
    with progress_bar(as_json) as progress:
        ready = ready_plan(model, replace(config, progress=progress))
        if dry_run:
            say(*_forecast(ready, place_of(plan_run(ready), config.overwrite)))
            return
        if not as_json:
            say(*_forecast(ready, ""), file=sys.stderr)
        made, folder = run_plan(ready, command="studfinder " + " ".join(sys.argv[1:]))
    say_if_older(made.run)
    if as_json:
        say_json((folder / PLAN_FILE).read_text(encoding="utf-8"))
        return
    for one in made.solutions:
        print_sheet("plan", plan_tables(one), plan_notes(made, one), None)
    say("")
    say(f"report    {folder}/report.html")
    say_next(made, folder)


def _forecast(ready: object, place: str) -> list[str]:
    from studfinder.verbs.plan import PlanReady
    from studfinder.verbs.plan_work import workload

    assert isinstance(ready, PlanReady)
    return [workload(ready) + (f": {place}" if place else "")]

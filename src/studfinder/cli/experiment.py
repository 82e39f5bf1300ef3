"""studfinder experiment"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from studfinder.cli import options as o
from studfinder.cli.faces import face
from studfinder.cli.progress import progress_bar
from studfinder.cli.shown import say_if_older
from studfinder.verbs.configs import ExperimentConfig
from studfinder.visible import say, say_json

EXAMPLES = """Examples:

\b
  studfinder ls experiments                                           what there is
  studfinder experiment super-weight/ablation --model smollm2         a paper's table on the built-in model
  studfinder experiment massive-values/rope --model smollm2 --model gemma3-270m
  studfinder experiment super-weight/scaling --model ./mine --limit 50 --set factors=0,0.5,1,2
"""


@face(ExperimentConfig)
def command(
    name: Annotated[str, typer.Argument(help="Which; see studfinder ls experiments.")],
    config: ExperimentConfig,
    as_json: o.Json = False,
    dry_run: o.DryRun = False,
    debug: o.Debug = False,
) -> None:
    """Make one table or figure of a paper on your own model.

    Interrupted, the same command goes on where it stopped.
    """
    from functools import partial

    from studfinder.experiments import plan_experiment, run_experiment
    from studfinder.measures import batch_size as reading
    from studfinder.runs import first_process
    from studfinder.verbs.load import load_as

    settings = {"limit": config.limit, "seed": config.seed, **_changes(config.change)}
    plan = plan_experiment(name, config.model or None, preset=config.preset, settings=settings)
    shown = ", ".join(f"{key}={value}" for key, value in plan.settings.items())
    if dry_run:
        models = ", ".join(plan.models) or "models of its own"
        say(f"would run {name} on {models} with {shown}; it needs {plan.entry.needs}")
        return
    first = first_process()  # of several processes, one speaks
    if not as_json and first:
        say(f"{name}: {plan.entry.needs}", file=sys.stderr)
    with progress_bar(as_json or not first) as progress, reading(config.tokens):
        result, folder = run_experiment(
            plan,
            out=config.folder,
            overwrite=config.overwrite,
            progress=progress,
            command="studfinder " + " ".join(sys.argv[1:]),
            loader=partial(load_as, config=config),
        )
    if not first:
        return
    say_if_older(result.run)
    if as_json:
        say_json((folder / "result.json").read_text(encoding="utf-8"))
        return
    from studfinder.report.cells import print_sheet

    print_sheet(result.name, result.tables, result.notes, folder)


def _changes(pairs: Sequence[str]) -> dict[str, str]:
    from studfinder.errors import StudfinderError

    changes = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise StudfinderError(f"--set {pair}", expected="NAME=VALUE")
        changes[name] = value
    return changes

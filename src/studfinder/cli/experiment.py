"""studfinder experiment"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from studfinder.cli import options as o
from studfinder.cli.progress import progress_bar
from studfinder.cli.shown import say_if_older
from studfinder.visible import say, say_json

EXAMPLES = """Examples:

\b
  studfinder ls experiments                                           what there is
  studfinder experiment super-weight/ablation --model smollm2         a paper's table on the built-in model
  studfinder experiment massive-values/rope --model smollm2 --model gemma3-270m
  studfinder experiment super-weight/scaling --model ./mine --limit 50 --set factors=0,0.5,1,2
"""


def command(
    name: Annotated[str, typer.Argument(help="Which; see studfinder ls experiments.")],
    model: Annotated[list[str] | None, typer.Option(help="A model (repeatable).  [default: smollm2]")] = None,
    preset: Annotated[str, typer.Option(help="cpu: minutes on two cores; paper: the paper's own sizes.")] = "cpu",
    limit: Annotated[int | None, typer.Option(help="At most so many items of each measure.")] = None,
    seed: Annotated[int | None, typer.Option(help="For everything that is drawn at random.")] = None,
    batch_size: o.BatchSize = "auto",
    change: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE of the preset (repeatable).")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder.  [default: runs/<model>/<name>-<key>]")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make it anew, and replace what is there.")] = False,
    dtype: o.Dtype = "auto",
    device: o.Device = None,
    revision: o.Revision = None,
    allow_missing: o.AllowMissing = False,
    merge_adapter: o.MergeAdapter = False,
    as_json: o.Json = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")] = False,
    debug: o.Debug = False,
) -> None:
    """Make one table or figure of a paper on your own model.

    Interrupted, the same command goes on where it stopped.
    """
    from functools import partial

    tokens = o.batch_tokens(batch_size)
    from studfinder.experiments import plan_experiment, run_experiment
    from studfinder.measures import batch_size as reading
    from studfinder.runs import first_process
    from studfinder.verbs.load import load

    settings = {"limit": limit, "seed": seed, **_changes(change or [])}
    plan = plan_experiment(name, model or None, preset=preset, settings=settings)
    shown = ", ".join(f"{key}={value}" for key, value in plan.settings.items())
    if dry_run:
        models = ", ".join(plan.models) or "models of its own"
        say(f"would run {name} on {models} with {shown}; it needs {plan.entry.needs}")
        return
    first = first_process()  # of several processes, one speaks
    if not as_json and first:
        say(f"{name}: {plan.entry.needs}", file=sys.stderr)
    with progress_bar(as_json or not first) as progress, reading(tokens):
        result, folder = run_experiment(
            plan,
            out=out,
            overwrite=overwrite,
            progress=progress,
            command="studfinder " + " ".join(sys.argv[1:]),
            loader=partial(
                load,
                dtype=dtype,
                device=device,
                revision=revision,
                allow_missing=allow_missing,
                merge_adapter=merge_adapter,
            ),
        )
    if not first:
        return
    say_if_older(result.run)
    if as_json:
        say_json((folder / "result.json").read_text(encoding="utf-8"))
        return
    from studfinder.report.cells import print_sheet

    print_sheet(result.name, result.tables, result.notes, folder)


def _changes(pairs: list[str]) -> dict[str, str]:
    from studfinder.errors import StudfinderError

    changes = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise StudfinderError(f"--set {pair}", expected="NAME=VALUE")
        changes[name] = value
    return changes

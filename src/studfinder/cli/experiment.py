"""studfinder experiment"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studfinder.cli import options as o
from studfinder.cli.faces import face
from studfinder.cli.progress import progress_bar
from studfinder.cli.shown import say_if_older, say_next
from studfinder.errors import StudfinderError
from studfinder.records.config import settings_of
from studfinder.verbs.configs import ExperimentConfig
from studfinder.visible import say, say_json

if TYPE_CHECKING:
    from studfinder.experiments import EndedRun

EXAMPLES = """Examples:

\b
  studfinder ls experiments                                           what there is
  studfinder experiment super-weight/ablation --model smollm2         a paper's table on the built-in model
  studfinder experiment massive-values/rope --model smollm2 --model gemma3-270m
  studfinder experiment super-weight/scaling --model ./mine --limit 50 --set factors=0,0.5,1,2
  studfinder experiment super-weight/ablation --on processes:4        four workers share its grid
  studfinder experiment --all --model ./mine                          all that judge the papers' claims, in turn
"""

OWN_OPTIONS: dict[str, Any] = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
    "add_help_option": False,
}
"""What typer does not know is an option of the experiment itself."""


@face(ExperimentConfig)
def command(
    ctx: typer.Context,
    config: ExperimentConfig,
    name: Annotated[str | None, typer.Argument(help="Which; see studfinder ls experiments.")] = None,
    as_json: o.Json = False,
    dry_run: o.DryRun = False,
    debug: o.Debug = False,
    help: Annotated[bool, typer.Option("--help", "-h", help="Show this and, of a NAME, its own settings.")] = False,
) -> None:
    """Make one table or figure of a paper on your own model.

    Interrupted, the same command goes on where it stopped. An experiment's own settings are options too:
    studfinder experiment NAME --help shows them.
    """
    from functools import partial

    if help:
        say(*ctx.get_help().splitlines(), *(_own(name, config.preset) if name else []))
        return
    if config.every or config.listing is not None:
        _all(config, [*([name] if name else []), *ctx.args], as_json, dry_run)
        return
    if name is None:
        raise StudfinderError("no experiment is named", do="studfinder ls experiments lists them")
    from studfinder.experiments import plan_experiment, run_experiment
    from studfinder.measures import batch_size as reading
    from studfinder.runs import check_place, first_process
    from studfinder.verbs.load import load_as

    settings = {"limit": config.limit, "seed": config.seed, **_changes(config.change), **_options(ctx.args)}
    plan = plan_experiment(name, config.model or None, preset=config.preset, settings=settings)
    crew = None if config.on is None else plan.crew(config.on, gpu=str(config.device).startswith("cuda"))
    if dry_run:
        if config.folder is not None:
            check_place(config.folder, config.overwrite)
        models = ", ".join(plan.models) or "models of its own"
        by = f", shared by {config.on}" if crew else ""
        say(f"would run {name} on {models} with {plan.shown}{by}; it needs {plan.entry.needs}")
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
            crew=crew,
            mixed=config.mixed,
        )
    if not first:
        return
    say_if_older(result.run)
    if as_json:
        say_json((folder / "result.json").read_text(encoding="utf-8"))
        return
    from studfinder.report.cells import print_sheet
    from studfinder.report.claims import claims_table

    print_sheet(result.name, (*claims_table(result.claims), *result.tables), result.notes, folder)
    say_next(result, folder)


def _all(config: ExperimentConfig, more: Sequence[str], as_json: bool, dry_run: bool) -> None:
    """A whole set, in the order of a file: how long it takes, a line as each run ends, and what all of them say."""
    import shlex
    from functools import partial

    from studfinder.experiments import listed_runs, run_listed
    from studfinder.experiments.listed import CLAIMS
    from studfinder.measures import batch_size as reading
    from studfinder.report.words import duration
    from studfinder.runs import first_process
    from studfinder.verbs.load import load_as, options_of

    own = [*more, *config.change, *(f"--{one}" for one in ("limit", "seed") if getattr(config, one) is not None)]
    own += ["--preset"] * (config.preset != "cpu")
    own += ["--on"] * (config.on is not None)
    if own:
        raise StudfinderError(f"{own[0]} beside --all", expected="settings in the file", do="Or run one by its name")
    runs = listed_runs(config.listing or CLAIMS, config.model or None)
    root = config.folder or Path("runs")
    if root.exists() and not root.is_dir():
        raise StudfinderError(f"--out {root} is a file", expected="a folder, or a name that does not exist yet")
    known = [run.minutes for run in runs if run.minutes is not None]
    estimate = f"{len(runs)} runs, {duration(60 * sum(known))} on two cores as stated"
    estimate += f" ({len(runs) - len(known)} do not state theirs)" * (len(known) < len(runs))
    if dry_run:
        for run in runs:
            takes = f"about {duration(60 * run.minutes)}" if run.minutes else f"needs {run.plan.entry.needs}"
            say(f"would run {run} with {run.plan.shown}; {takes}")
        say(f"{estimate}; results go to {root}/<model>/")
        return
    first = first_process()
    loud = first and not as_json
    if loud:
        say(f"{estimate}; results go to {root}/<model>/", file=sys.stderr)
    flags = (
        [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        for name, value in options_of(config).items()
    )
    ended = []
    with progress_bar(not loud) as progress, reading(config.tokens):
        for one in run_listed(
            runs,
            root=root,
            overwrite=config.overwrite,
            progress=progress,
            options=shlex.join(word for words in flags for word in words),
            loader=partial(load_as, config=config),
        ):
            ended.append(one)
            if loud:
                what = f"refused: {one.refused}" if one.refused else "was there" if one.read else duration(one.seconds)
                say(f"[{len(ended)}/{len(runs)}] {one.run}: {what}", file=sys.stderr)
    if first:
        _say_ended(ended, as_json)
    if any(one.refused for one in ended):
        raise typer.Exit(1)


def _say_ended(ended: Sequence[EndedRun], as_json: bool) -> None:
    """What all of them say of the papers' claims, and where each is."""
    import json

    from studfinder.records import Table
    from studfinder.report.cells import print_sheet
    from studfinder.report.claims import claims_overview, verdicts
    from studfinder.report.words import duration

    if as_json:
        plain = [
            {
                "experiment": one.run.plan.entry.name,
                "models": one.run.plan.models,
                "folder": one.folder and str(one.folder),
                "read": one.read,
                "seconds": one.seconds,
                "refused": one.refused,
            }
            for one in ended
        ]
        say_json(json.dumps(plain, indent=1))
        return
    results = [one.result for one in ended if one.result is not None]
    claims = [claim for result in results for claim in result.claims]
    places = (f"refused: {one.refused}" if one.refused else str(one.folder) for one in ended)
    rows = tuple((str(one.run), duration(one.seconds), place) for one, place in zip(ended, places, strict=True))
    table = Table(title="runs", columns=("run", "took", "where"), rows=rows)
    print_sheet("", [*claims_overview(results), table], [f"Claims: {verdicts(claims)}."] * bool(claims), None)


def _changes(pairs: Sequence[str]) -> dict[str, str]:
    changes = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise StudfinderError(f"--set {pair}", expected="NAME=VALUE")
        changes[name] = value
    return changes


def _options(given: Sequence[str]) -> dict[str, str]:
    """The experiment's own options, as --name VALUE or --name=VALUE."""
    words, found = list(given), {}
    while words:
        name, equals, value = words.pop(0).partition("=")
        if not name.startswith("--") or not (equals or words):
            raise StudfinderError(f"{name!r} is not understood", expected="--NAME VALUE of the experiment's settings")
        found[name[2:].replace("-", "_")] = value if equals else words.pop(0)
    return found


def _own(name: str, preset: str) -> list[str]:
    """The settings of an experiment, as --help shows options."""
    from studfinder.experiments import experiment_named

    config = experiment_named(name).EXPERIMENT.settings(preset)
    lines = ["", f"Settings of {name}:"]
    for one in settings_of(config):
        value = getattr(config, one.name)
        value = ",".join(map(str, value)) if isinstance(value, tuple) else value
        lines.append(f"  {one.flag:22}" + f"{one.option.help}  [default: {value}]".strip())
    return lines

"""studfinder measure"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from studfinder.cli import options as o
from studfinder.cli.progress import progress_bar
from studfinder.cli.shown import say_if_older
from studfinder.visible import say, say_json

EXAMPLES = """Examples:

\b
  studfinder measure                                                 the built-in model's scorecard
  studfinder measure smollm2 --edit zero:runs/smollm2/scan-4428c2f28f --limit 100
  studfinder measure smollm2 --edit pooled-mean:query+key.top1 --measures perplexity,passkey,facts
  studfinder measure ./my-w4 --against Qwen/Qwen3-8B                 what a quantised model lost
  studfinder measure smollm2 --tasks piqa,arc_easy --limit 200       public tasks, through lm-eval
"""


def command(
    model: o.Model = "smollm2",
    edit: Annotated[
        list[str] | None,
        typer.Option(help="What to change, KIND:TARGET (repeatable), e.g. zero:RUN; see the examples."),
    ] = None,
    against: Annotated[str | None, typer.Option(help="Another model as the baseline.")] = None,
    measures: Annotated[
        str | None, typer.Option(help="Names with commas between.  [default: a set that needs no data]")
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="Public tasks, with commas between, instead or beside.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many items of each measure.")] = None,
    seed: Annotated[int, typer.Option(help="For what is drawn at random.")] = 0,
    batch_size: o.BatchSize = "auto",
    out: Annotated[Path | None, typer.Option(help="Run folder.  [default: runs/<model>/measure-<key>]")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make it anew, and replace what is there.")] = False,
    dtype: o.Dtype = "auto",
    device: o.Device = None,
    device_map: o.DeviceMap = None,
    revision: o.Revision = None,
    attention: o.Attention = None,
    trust_remote_code: o.TrustRemoteCode = False,
    allow_pickle: o.AllowPickle = False,
    allow_missing: o.AllowMissing = False,
    merge_adapter: o.MergeAdapter = False,
    as_json: o.Json = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")] = False,
    debug: o.Debug = False,
) -> None:
    """Measure what a model can do: fluency, context, memory and reasoning, with intervals.

    With --edit, before and after the edit on the same items; with --against, beside another model. Interrupted, the
    same command goes on where it stopped.
    """
    from functools import partial

    tokens = o.batch_tokens(batch_size)
    names = _names(measures, tasks)
    from studfinder.measures import batch_size as reading
    from studfinder.measures import measure_named
    from studfinder.models import cached_content_hash
    from studfinder.verbs.load import load
    from studfinder.verbs.measure import DEFAULT, SCORECARD_FILE, plan_measure, run_measure

    for name in names:  # said before a model is loaded for nothing
        measure_named(name)
    open_model = partial(
        load,
        dtype=dtype,
        device=device,
        device_map=device_map,
        revision=revision,
        attention=attention,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        allow_missing=allow_missing,
        merge_adapter=merge_adapter,
    )
    lm = open_model(model)
    edits = _edits(lm, edit or [])
    plan = plan_measure(
        lm,
        names or DEFAULT,
        edits=edits,
        words=edit or [],
        against=open_model(against) if against else None,
        limit=limit,
        seed=seed,
        hash_of=cached_content_hash,
    )
    if dry_run:
        say(f"would measure {model}: {', '.join(plan.measures)}" + f", with {len(edits)} edits" * bool(edits))
        return
    with progress_bar(as_json) as progress, reading(tokens):
        card, folder = run_measure(
            plan,
            out=out,
            write=True,
            overwrite=overwrite,
            progress=progress,
            command="studfinder " + " ".join(sys.argv[1:]),
        )
    assert folder is not None
    say_if_older(card.run)
    if as_json:
        say_json((folder / SCORECARD_FILE).read_text(encoding="utf-8"))
        return
    from studfinder.report.cells import print_sheet
    from studfinder.report.scorecard import tables

    print_sheet("scorecard", tables([card]), [f"edit: {words}" for words in card.edits], folder)


def _names(measures: str | None, tasks: str | None) -> list[str]:
    found = [name.strip() for name in (measures or "").split(",") if name.strip()]
    return found + [f"tasks:{name.strip()}" for name in (tasks or "").split(",") if name.strip()]


def _edits(lm: Any, texts: list[str]) -> list[Any]:
    if not texts:
        return []
    from studfinder.edits.spec import parse_edits

    return [change for text in texts for change in parse_edits(lm, text)]

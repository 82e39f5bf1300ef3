"""studfinder train"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from studfinder.cli import options as o
from studfinder.cli.shown import say_if_older
from studfinder.visible import say, say_json

EXAMPLES = """Examples:

\b
  studfinder train --task induction:vocabulary=256,length=64 --layers 1 --attention kv_shift
  studfinder train --text wikipedia --attention gated    the preset "toy" on a text
  studfinder train --preset 1m --text ./books --attention kv_shift --attention gated
  studfinder train --preset opt-125m --text allenai/c4:en --dry-run    what it would take
  studfinder train --from smollm2 --text wikipedia --steps 2000 --lr 5e-5
  accelerate launch --multi_gpu --num_processes 8 -m studfinder train --preset 10m --text ./books
"""


def command(
    task: Annotated[
        str | None, typer.Option(help="Toy task: induction, n-gram, hop-k, recall, backcopy; settings after a colon.")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="A file, a folder, a name below STUDFINDER_DATA, or a hub data set.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="toy, 1m, 10m, opt-125m or kv-shift-1.5b: model, recipe, tokens.")
    ] = None,
    base: Annotated[str | None, typer.Option("--from", help="Go on with a trained model instead.")] = None,
    attention: Annotated[
        list[str] | None,
        typer.Option(help="A variant, e.g. kv_shift or gated:kind=linear,pi_init=0.25 (repeatable); vanilla is none."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder.  [default: runs/<model>/train-<key>]")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make it anew, and replace what is there.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Sequences a step, over all devices.")] = None,
    micro: Annotated[int | None, typer.Option(min=1, help="Sequences a forward pass on one device.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    schedule: Annotated[str | None, typer.Option(help="constant, cosine or linear, after the warm-up.")] = None,
    warmup: Annotated[int | None, typer.Option(min=0, help="Steps of warm-up.")] = None,
    weight_decay: Annotated[float | None, typer.Option(min=0, help="AdamW's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the weights and of the order of the data.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 (autocast), or auto: whichever is faster.")] = None,
    look_every: Annotated[int | None, typer.Option(min=1, help="Steps between evaluations.")] = None,
    test: Annotated[int | None, typer.Option(min=1, help="Sequences of each evaluation.")] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Blocks.")] = None,
    hidden: Annotated[int | None, typer.Option(min=1, help="Width.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Query heads.")] = None,
    length: Annotated[int | None, typer.Option(min=4, help="Tokens of a window of text.")] = None,
    vocabulary: Annotated[int | None, typer.Option(min=257, help="Of the BPE that is trained on the text.")] = None,
    apart: Annotated[bool, typer.Option("--apart", help="Packed documents do not see each other (not opt).")] = False,
    dequantize: Annotated[
        bool, typer.Option("--dequantize", help="With --from a quantised checkpoint: train a dequantised copy.")
    ] = False,
    tensorboard: Annotated[
        bool | None, typer.Option("--tensorboard/--no-tensorboard", help="[default: if it is installed]")
    ] = None,
    allow_missing: o.AllowMissing = False,
    merge_adapter: o.MergeAdapter = False,
    as_json: o.Json = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")] = False,
    debug: o.Debug = False,
) -> None:
    """Train a small language model, with any attention, and watch outliers appear, or not.

    On a toy task or a text; from scratch or from a trained model. Accuracy, loss and outliers (inf norm, kurtosis,
    massive activations, massive Q and K values, attention sinks) are logged at each evaluation. Ctrl-C writes a
    checkpoint; the same command goes on from there and ends with the same loss as if it had never stopped.
    """
    from studfinder.models import permitting
    from studfinder.runs import first_process
    from studfinder.verbs.train import plan_train, run_train

    permitted = partial(permitting, allow_missing=allow_missing, merge_adapter=merge_adapter)
    course = {
        "steps": steps,
        "batch": batch,
        "micro": micro,
        "lr": lr,
        "schedule": schedule,
        "warmup": warmup,
        "weight_decay": weight_decay,
        "seed": seed,
        "precision": precision,
        "look_every": look_every,
        "test": test,
    }
    with permitted():
        plan = plan_train(
            task=task,
            text=text,
            base=base,
            preset_name=preset,
            attention=attention,
            shape=_given({"layers": layers, "hidden": hidden, "heads": heads}),
            recipe=_given(course),
            length=length,
            vocabulary=vocabulary,
            apart=apart,
            dequantize=dequantize,
        )
    attended = " + ".join(variant.name for variant in plan.variants) or "vanilla"
    what = f"{plan.name} ({attended} attention, {plan.recipe.precision}): {plan.estimate}"
    notes = [f"note: {note}" for note in plan.notes]
    if dry_run:
        say(f"would train {what}", *notes)
        return
    first = first_process()  # of several processes, one speaks
    if first:
        say(f"training {what}", *notes, file=sys.stderr)
    with permitted():
        record, folder = run_train(
            plan,
            out=out,
            overwrite=overwrite,
            tensorboard=tensorboard,
            quiet=as_json,
            command="studfinder " + " ".join(sys.argv[1:]),
        )
    if not first:
        return
    say_if_older(record.run)
    if as_json:
        say_json((folder / "result.json").read_text(encoding="utf-8"))
        return
    say(f"loss      {record.loss}" + ("  (the loss stopped being finite)" if record.diverged else ""))
    say(f"accuracy  {record.accuracy}")
    for name in ("inf_norm", "kurtosis", "massive_activations", "massive_queries", "massive_keys", "sink_share"):
        curve = record.curve(f"outliers/{name}")
        if curve:
            say(f"{name.replace('_', ' '):20}{curve[0][1]:.3g} at step {curve[0][0]}, {curve[-1][1]:.3g} at the end")
    say(f"model     {folder / 'model'}")


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}

"""studfinder train"""

from __future__ import annotations

import sys
from dataclasses import replace

from studfinder.cli import options as o
from studfinder.cli.faces import face
from studfinder.cli.shown import say_if_older, say_next
from studfinder.verbs.configs import TrainConfig
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


@face(TrainConfig)
def command(
    config: TrainConfig,
    as_json: o.Json = False,
    dry_run: o.DryRun = False,
    debug: o.Debug = False,
) -> None:
    """Train a small language model, with any attention, and watch outliers appear, or not.

    On a toy task or a text; from scratch or from a trained model. Accuracy, loss and outliers (inf norm, kurtosis,
    massive activations, massive Q and K values, attention sinks) are logged at each evaluation. Ctrl-C writes a
    checkpoint; the same command goes on from there and ends with the same loss as if it had never stopped.
    """
    from studfinder.runs import check_place, first_process
    from studfinder.verbs.train import plan_train, run_train

    plan = plan_train(replace(config, quiet=as_json))
    attended = " + ".join(variant.name for variant in plan.variants) or "vanilla"
    what = f"{plan.name} ({attended} attention, {plan.recipe.precision}): {plan.estimate}"
    what += f"; text: {plan.source}" if plan.source else ""
    notes = [f"note: {note}" for note in plan.notes]
    if dry_run:
        if config.folder is not None:
            check_place(config.folder, config.overwrite)
        say(f"would train {what}", *notes)
        return
    first = first_process()  # of several processes, one speaks
    if first:
        say(f"training {what}", *notes, file=sys.stderr)
    record, folder = run_train(plan, command="studfinder " + " ".join(sys.argv[1:]))
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
    say_next(record, folder)

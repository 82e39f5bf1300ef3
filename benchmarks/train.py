"""What training through studfinder costs: against a plain loop of the same model, and with outliers watched.

    python benchmarks/train.py [--rounds 5] [--steps 40] [--hidden 64 256 512] [--out docs/results/train-speed.json]

Ratios of runs side by side, in turn, in one process: absolute times mean nothing on a shared machine. The plain loop
does the same arithmetic: the same sequences (their making included), AdamW (fused), clipping and schedule.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from transformers import get_constant_schedule_with_warmup

from studfinder.attention import parameter_groups
from studfinder.training import ModelShape, Outliers, TaskSource, TrainingRecipe, build_model, fit, task_from
from studfinder.training.estimate import faster_precision
from studfinder.training.streams import SequenceRows, collate

TASK = "induction:vocabulary=256,length=64"


def model(hidden: int):
    return build_model(ModelShape(layers=2, hidden=hidden, heads=4), [], vocabulary=256, length=64, seed=0)


def plain(hidden: int, source: TaskSource, recipe: TrainingRecipe) -> float:
    """Seconds of CPU time a step of an ordinary loop."""
    live = model(hidden).train()
    groups = parameter_groups(live, recipe.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), fused=True)
    schedule = get_constant_schedule_with_warmup(optimizer, recipe.warmup)
    rows = SequenceRows(source, "train", 0, recipe.steps * recipe.batch)
    begun = 0.0
    for step in range(recipe.steps):
        if step == recipe.steps // 4:
            begun = time.process_time()
        batch = collate([rows[i] for i in range(step * recipe.batch, (step + 1) * recipe.batch)])
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
            loss = live(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(live.parameters(), recipe.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return (time.process_time() - begun) / (recipe.steps - recipe.steps // 4)


class Clock:
    """CPU time of the steps after the first quarter."""

    def __init__(self, steps: int) -> None:
        from transformers import TrainerCallback

        clock = self
        self.begun = self.each = 0.0

        class Callback(TrainerCallback):
            def on_step_end(self, args, state, control, **_):
                if state.global_step == steps // 4:
                    clock.begun = time.process_time()
                if state.global_step == steps:
                    clock.each = (time.process_time() - clock.begun) / (steps - steps // 4)

        self.callback = Callback()


def ours(hidden: int, source: TaskSource, recipe: TrainingRecipe) -> float:
    """The same through `fit`, without evaluations."""
    clock = Clock(recipe.steps)
    fit(model(hidden), source, recipe, callbacks=[clock.callback])
    return clock.each


def looking(hidden: int, source: TaskSource) -> float:
    """Seconds of CPU time that one look at outliers takes."""
    live = model(hidden)
    outliers = Outliers(source)

    class State:
        global_step = 0
        is_world_process_zero = True

    outliers.on_train_begin(None, State(), None, model=live)
    outliers.on_evaluate(None, State(), None, model=live)
    begun = time.process_time()
    outliers.on_evaluate(None, State(), None, model=live)
    return time.process_time() - begun


def spread(values: list[float]) -> dict[str, float]:
    values = sorted(values)
    return {"median": statistics.median(values), "low": values[0], "high": values[-1]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 256, 512])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    source = TaskSource(task_from(TASK))
    found = {}
    for hidden in options.hidden:
        recipes = {
            name: TrainingRecipe(
                steps=options.steps, batch=options.batch, look_every=options.steps, test=8, precision=name
            )
            for name in ("fp32", "bf16")
        }
        rounds: dict[str, list[float]] = {"tokens/s over plain loop": [], "callback share": [], "bf16 over fp32": []}
        for _ in range(options.rounds):
            loop = plain(hidden, source, recipes["fp32"])
            trained = ours(hidden, source, recipes["fp32"])
            rounds["tokens/s over plain loop"].append(loop / trained)
            # At the default interval: 20 looks in a run, of however many steps; the shortest preset has 1,000.
            rounds["callback share"].append(20 * looking(hidden, source) / (1000 * trained))
            rounds["bf16 over fp32"].append(plain(hidden, source, recipes["bf16"]) / loop)
        found[hidden] = {name: spread(values) for name, values in rounds.items()}
        print(
            hidden, {name: f"{s['median']:.3f} [{s['low']:.3f}, {s['high']:.3f}]" for name, s in found[hidden].items()}
        )
        print("   auto precision would choose", faster_precision(hidden))
    if options.out:
        record = {"task": TASK, "layers": 2, "batch": options.batch, "rounds": options.rounds, "by_width": found}
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

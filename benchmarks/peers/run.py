"""What saving tensors costs here and in two peers: time and peak memory over a plain forward pass.

    python benchmarks/peers/run.py [--rounds N]

Makes an environment for each peer under build/peers (once; torch is pinned to the version installed here), hands every
library the same model folder and the same token ids, and prints one table. Times are taken in turns: one prompt goes
through the plain pass and every row of the library, in rotating order, in one process; the ratio is the median over
all turns with a bootstrap interval. Peak memory (resident, after loading; Linux) is that of a fresh process a row, over
that of a fresh process in the same environment which imports the library but runs only plain passes. `child.py` holds
the calls.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

import torch

import studfinder as sf
from studfinder.models.builtin import BUILTINS, ensure
from studfinder.texts import default_prompts, encode

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "peers"
PEERS = {"transformer-lens": "4.3.0", "nnsight": "0.8.1"}
ROWS = {
    "studfinder": ("capture", "observe, 4 detectors"),
    "transformer-lens": ("forward, nothing saved", "run_with_cache, names_filter", "run_with_cache"),
    "nnsight": (".source, post-RoPE", "module outputs, pre-RoPE"),
}
LIKE = "plain, last logits"
"""What `observe` runs underneath: nobody reads the other logits."""


def environment(peer):
    """The peer's own Python, installed on first use with our torch and our transformers."""
    folder = BUILD / peer
    python = folder / "bin" / "python"
    done = folder / f".installed-{PEERS[peer]}"
    if not done.exists():
        venv.create(folder, with_pip=True)
        constraints = BUILD / "constraints.txt"
        pins = [f"{name}=={version(name).split('+')[0]}" for name in ("torch", "transformers", "numpy")]
        constraints.write_text("\n".join(pins) + "\n", "utf-8")
        install = [python, "-m", "pip", "install", "-q", "-c", constraints, f"{peer}=={PEERS[peer]}", "transformers"]
        subprocess.run(install, check=True)
        done.touch()
    return python


def ask(library, *what):
    python = sys.executable if library == "studfinder" else environment(library)
    clean = {name: value for name, value in os.environ.items() if library == "studfinder" or name != "PYTHONPATH"}
    command = [python, HERE / "child.py", library, what[0], BUILD / "order.json", *what[1:]]
    run = subprocess.run(command, env=clean | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{library} {' '.join(what)} failed:\n{run.stderr[-3000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def interval(ratios, draws=2000):
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(draws))
    return statistics.median(ratios), medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def say(row, seconds="", ratio="", held="", peak="", over=""):
    library, name = row
    print(f"{library:18}{name:30}{seconds:>10}{ratio:>24}{held:>9}{peak:>10}{over:>8}")


def print_rows(library, times, peaks):
    def ratio(row, base="plain"):
        return "{:.2f} [{:.2f}, {:.2f}]".format(*interval([turn[row] / turn[base] for turn in turns]))

    def seconds(row):
        return f"{statistics.median(turn[row] for turn in turns):.2f}s"

    turns = times["turns"]
    say((library, "plain"), seconds("plain"), "1", "", f"{peaks['plain']:.0f}", "1")
    for row in ROWS[library]:
        held = f"{times['held'][row]:.0f}"
        say(("", row), seconds(row), ratio(row), held, f"{peaks[row]:.0f}", f"{peaks[row] / peaks['plain']:.2f}")
    if LIKE in turns[0]:
        say(("", "  over " + LIKE), seconds(LIKE), ratio(ROWS[library][-1], LIKE))


def measured(rounds):
    BUILD.mkdir(parents=True, exist_ok=True)
    for peer in PEERS:
        environment(peer)
    folder = ensure(BUILTINS["smollm2"])
    lm = sf.load(str(folder), dtype="float32")
    ids, _ = encode(lm, default_prompts())
    order = {
        "folder": str(folder),
        "layers": len(lm.anatomy.layers),
        "ids": ids,
        "rounds": rounds,
        "reference": str(BUILD / "reference.pt"),
    }
    (BUILD / "order.json").write_text(json.dumps(order), "utf-8")
    del lm
    peaks = {
        name: {row: ask(name, "peak", row)["megabytes"] for row in ("plain", *rows)} for name, rows in ROWS.items()
    }
    checks = {name: ask(name, "check") for name in ROWS}
    print("memory measured; now the times", file=sys.stderr, flush=True)
    times = {name: ask(name, "time") for name in ROWS}
    return {"peaks": peaks, "checks": checks, "times": times}


def print_table(answers):
    ids = json.loads((BUILD / "order.json").read_text("utf-8"))["ids"]
    names = {"torch": torch.__version__, "transformers": version("transformers"), **PEERS}
    print(", ".join(f"{name} {number}" for name, number in names.items()))
    shortest, longest = min(map(len, ids)), max(map(len, ids))
    print(f"smollm2 in float32, {len(ids)} prompts of {shortest} to {longest} tokens, one at a time,")
    turns = ", ".join(f"{name} {len(times['turns'])}" for name, times in answers["times"].items())
    print(f"{torch.get_num_threads()} threads; turns: {turns}\n")
    say(("", ""), "median", "time / plain", "held MB", "peak MB", "/ plain")
    for library in ROWS:
        print_rows(library, answers["times"][library], answers["peaks"][library])
    print("\nThe same tensors? Against ours, on the first prompt:")
    for library, found in answers["checks"].items():
        print(
            f"{library:18}{found['tensors']} tensors, {found['equal']} of {found['of']} bit-equal, largest relative "
            f"difference {found['relative']:.1e} ({found['worst']})"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="print the last run's table, measuring nothing")
    arguments = parser.parse_args()
    kept = BUILD / "answers.json"
    if not arguments.again:
        kept.write_text(json.dumps(measured(arguments.rounds)), "utf-8")
    print_table(json.loads(kept.read_text("utf-8")))


if __name__ == "__main__":
    main()

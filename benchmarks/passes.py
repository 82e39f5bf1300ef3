"""What stands on the engine (`studfinder.passes`), beside how it was done before.

    git worktree add /tmp/before db43111
    python benchmarks/passes.py which-layer --before /tmp/before   each matrix rounded alone: block runs and time
    python benchmarks/passes.py scan --before /tmp/before          a whole scan with its proof, by part

`--before` is a checkout of the version to compare with. Both sides are measured in turns (A B, B A, ...) on the same
machine, which-layer in two processes that have loaded the model already; ratios are medians over rounds. What observing
costs beside a plain pass is printed by benchmarks/scan.py, perplexity beside lm-eval's HFLM by benchmarks/measure.py,
how often the proof would prove nothing at all by benchmarks/proof_null.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]

_BEGIN = """
import sys, time, json, torch, studfinder as sf
from studfinder.texts import encode, proof_text
from studfinder.quantizers import RTN, Scheme, skip, targets, quantized
lm = sf.load({model!r}, dtype={dtype!r})
every = targets(lm)
groups = {{target.fused: target.layer for target in every}}
scheme = Scheme(element="int4", block=64, zero="integer")
def others(group):
    return skip(*[target.modules[0] for target in every if target.fused != group])
def answer(round):
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        kl, blocks = round()
        print(json.dumps([time.perf_counter() - start, blocks, kl]), flush=True)
"""

WHICH = {
    "before": _BEGIN
    + """
from studfinder.studies import Original
def once():
    original = Original({windows}, layers=True)
    original.see(lm)
    kl = []
    for group, layer in groups.items():
        with original.above(layer), quantized(lm, RTN(scheme=scheme), keep=[others(group)]):
            kl.append(original.kl(lm).value)
    return kl, None
answer(once)
""",
    "now": _BEGIN
    + """
from studfinder.measures import effects_of
from studfinder.passes import BlockRuns
from studfinder.quantizers.apply import bench_for
from studfinder.quantizers.streams import quantized_stream
text = encode(lm, proof_text()[:{windows}])[0]
def once():
    runs = BlockRuns()
    method = RTN(scheme=scheme)
    streams = [quantized_stream(bench_for(lm, method, keep=[others(group)]), method) for group in groups]
    found = effects_of(lm, text, streams, work=runs)
    return (found.kl.sum(axis=1) / found.tokens.sum()).tolist(), runs.blocks
answer(once)
""",
}


class Side:
    """One version, in a process of its own that runs a round when it is told to."""

    def __init__(self, checkout: Path, code: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n", "the other process could not begin"

    def round(self) -> tuple[float, float | None, list[float]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return tuple(json.loads(self.process.stdout.readline()))


def said(ratios: list[float]) -> str:
    """The median, and the ends."""
    return f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] in {len(ratios)} rounds"


def which_layer(arguments: argparse.Namespace) -> None:
    settings = {"model": arguments.model, "dtype": arguments.dtype, "windows": arguments.windows}
    places = {"before": arguments.before, "now": HERE}
    sides = {name: Side(place, WHICH[name].format(**settings)) for name, place in places.items()}
    for side in sides.values():
        side.round()  # warm
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    found = {}
    for number in range(arguments.rounds):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            spent, blocks, kl = sides[name].round()
            seconds[name].append(spent)
            found[name] = kl, blocks
    (before, _), (now, blocks) = found["before"], found["now"]
    apart = max(abs(a - b) for a, b in zip(before, now, strict=True))
    ratios = [a / b for a, b in zip(seconds["before"], seconds["now"], strict=True)]
    print(f"{arguments.model}, {arguments.dtype}, {arguments.windows} pieces, {len(now)} groups, each rounded alone")
    print(f"block runs      {blocks:.0f} (with the clean stream; one that forks inside a block counts by its share)")
    print(
        f"before / now    {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}], {len(ratios)} rounds"
    )
    print(f"KL apart by     at most {apart:.1e} nats per token (largest KL {max(now):.3g})")


def scan(arguments: argparse.Namespace) -> None:
    print(f"scan {arguments.model} --dtype {arguments.dtype}, {arguments.rounds} rounds: seconds by part")
    spent: dict[str, list[dict[str, float]]] = {"before": [], "now": []}
    for number in range(arguments.rounds):
        for name in list(spent)[:: 1 if number % 2 else -1]:
            spent[name].append(_scanned(arguments.before if name == "before" else HERE, arguments))
    for name, rounds in spent.items():
        parts = dict.fromkeys(part for one in rounds for part in one)
        line = ", ".join(f"{part} {statistics.median(one.get(part, 0.0) for one in rounds):.1f}" for part in parts)
        print(f"{name:8}{line}")
    ratios = [a["all"] / b["all"] for a, b in zip(spent["before"], spent["now"], strict=True)]
    print(f"before / now    {said(ratios)}")


def _scanned(checkout: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of a scan by what its lines of progress name."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "studfinder", "scan", arguments.model, "--dtype", arguments.dtype]
        start = last = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--out", f"{folder}/scan"],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        parts, part = {"all": 0.0, "first candidates after": 0.0}, "loading"
        assert process.stderr is not None
        for line in process.stderr:
            now = time.perf_counter()
            parts[part] = parts.get(part, 0.0) + now - last
            last, part = now, _part(line) or part
            if "down_proj[" in line and not parts["first candidates after"] and "proving" not in line:
                parts["first candidates after"] = now - start
        if process.wait():
            raise SystemExit(f"the scan of {checkout} failed")
        end = time.perf_counter()
        parts["report"] = parts.get("report", 0.0) + end - last
        parts["all"] = end - start
    return parts


def _part(line: str) -> str:
    """What a line of progress says is being done; weights and numbers left out."""
    if "observing" in line:
        return "observing"
    if "proving" not in line:
        return ""
    _, _, what = line.partition("proving: ")
    return "proving " + what.split(" of layers")[0].split(":")[0].split("  ")[0].strip().rstrip("0123456789 /%")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("which-layer", "scan"))
    parser.add_argument("--before", type=Path, required=True, help="a checkout of the version to compare with")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--windows", type=int, default=4, help="pieces of the proof text, of which-layer")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    {"which-layer": which_layer, "scan": scan}[arguments.what](arguments)


if __name__ == "__main__":
    main()

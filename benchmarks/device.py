"""What a machine with a GPU is asked, in ten minutes at most: that all of it works there, and is what a CPU gives.

    python benchmarks/device.py [MODEL] [--device cuda] [--out device.md]

Each step is one row: what was done, what came out, seconds. A step that fails is a row with the error, the others go
on, and the exit code is 1. On the CPU against the GPU: KL of the logits beside that of a null edit of every matrix of a
block, which is what rounding alone does. `--device cpu` tries the script itself.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import studfinder as sf
from studfinder.edits import Weights, null, stream_of, zero
from studfinder.measures import effects_of
from studfinder.passes import carry
from studfinder.quantizers import GPTQ, RTN, calibration_windows, quantized
from studfinder.texts import batches, proof_windows


def scanned(model: str, device: str) -> str:
    found = sf.scan(sf.load(model, dtype="bfloat16", device=device), most=4, pools=0, census=False)
    proven = [f"L{one.layer} {list(one.index)} {one.effect.kl.value:.2f}" for one in found.proven if one.effect]
    return f"proven: {', '.join(proven) or 'none'}"


def same_as_cpu(model: str, device: str) -> str:
    here, there = (sf.load(model, dtype="float32", device=one) for one in ("cpu", device))
    windows = proof_windows(here)[:2]
    kl, tokens = 0.0, 0
    pairs = zip(*(carry(one, list(batches(windows))) for one in (here, there)), strict=True)
    for ours, theirs in pairs:
        rows = (0, slice(0, ours.batch.lengths[0]))
        one, other = (ends.logits(rows).double().cpu().log_softmax(-1) for ends in (ours, theirs))
        kl += float((one.exp() * (one - other)).sum())
        tokens += len(one)
    name = here.anatomy.layers[1].writers[0].parameter
    floor = effects_of(here, windows, [null(zero(Weights(parameter=name, entries=((None, None),))))])
    null_kl = float(floor.kl.sum() / floor.tokens.sum())
    return f"KL {kl / tokens:.1e} nats a token; a null edit of one matrix {null_kl:.1e}"


def fetched(model: str, device: str, memory: str) -> str:
    """Blocks that are fetched to the device while the one before runs, against the whole model there."""
    whole = sf.load(model, dtype="bfloat16", device=device)
    lm = sf.load(model, dtype="bfloat16", device=device, memory=memory)
    if lm.memory is None or not lm.memory.streamed:
        raise SystemExit(f"{model} fits into {memory}: give less with --memory")
    windows = proof_windows(whole)[:4]
    edit = zero(Weights(parameter=lm.anatomy.layers[1].writers[0].parameter, entries=((0, None),)))
    equal, seconds, ends = True, [], []
    for one in (whole, lm):
        began = time.perf_counter()
        ends.append([end.changed[0].cpu() for end in carry(one, list(batches(windows)), [stream_of(one, edit)])])
        seconds.append(time.perf_counter() - began)
    equal = all(map(torch.equal, *ends))
    return f"{'bit-equal' if equal else 'NOT EQUAL'} to the whole model there; time x{seconds[1] / seconds[0]:.1f}"


def rounded(model: str, device: str) -> str:
    lm = sf.load(model, dtype="bfloat16", device=device)
    _, windows = calibration_windows(lm, None, count=8, length=256)
    said = []
    for method in (RTN(), GPTQ()):
        with quantized(lm, method, windows=windows) as bench:
            said.append(f"{type(method).__name__} {bench.bits:.2f} bits")
    return ", ".join(said)


def trained(device: str, *, compiled: bool) -> str:
    """100 steps of a converted model under bf16 and SDPA."""
    with tempfile.TemporaryDirectory() as place:
        record, folder = sf.train(
            task="induction",
            attention=["kv-shift"],
            steps=100,
            precision="bf16" if device != "cpu" else "fp32",
            quiet=True,
            out=Path(place) / "run",
        )
        lm = sf.load(folder / "model", device=device)
        if compiled:
            lm.model.compile()
        ids = torch.arange(24, device=lm.device)[None] % lm.anatomy.vocabulary
        loss = lm.model(input_ids=ids, labels=ids).loss
        loss.backward()
    return f"loss after {record.steps} steps: {float(loss):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--memory", default="820MB", help="less than the model takes")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.device != "cpu" and not torch.cuda.is_available():
        sys.exit("there is no GPU here: nothing was done (--device cpu tries the script)")
    model, device = asked.model, asked.device
    steps: dict[str, Callable[[], str]] = {
        "scan with proof, bf16": lambda: scanned(model, device),
        "the same as on the CPU, fp32": lambda: same_as_cpu(model, device),
        f"--memory {asked.memory}, blocks fetched": lambda: fetched(model, device, asked.memory),
        "quantise": lambda: rounded(model, device),
        "convert and train": lambda: trained(device, compiled=False),
        "the same, compiled": lambda: trained(device, compiled=True),
    }
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    lines = [
        f"{name}, torch {torch.__version__}, studfinder {sf.__version__}, {model}",
        "",
        "| what | came out | seconds |",
        "| --- | --- | ---: |",
    ]
    print("\n".join(lines), flush=True)
    failed = False
    for what, step in steps.items():
        began = time.perf_counter()
        try:
            came = step()
        except Exception as error:
            came, failed = f"FAILED: {type(error).__name__}: {error}".splitlines()[0], True
        lines.append(f"| {what} | {came} | {time.perf_counter() - began:.0f} |")
        print(lines[-1], flush=True)
    if asked.out is not None:
        asked.out.write_text("\n".join(lines) + "\n")
    sys.exit(int(failed))


if __name__ == "__main__":
    main()

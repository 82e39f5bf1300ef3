"""Whether the quantisers here and llm-compressor's lose the same, on the same calibration tokens.

    python benchmarks/quantize_parity.py [--layers N] [--samples N] [--length T] [--python PYTHON] [--out FILE]

Both sides get the first layers of SmolLM2 in fp32 and the same windows. RTN must give the same codes. GPTQ, AWQ and
SmoothQuant are compared by reconstruction: every block gets what the unquantised model gives it, on the calibration
windows and on others, and the error is |quantised output - output|^2 / |output|^2, where the output is what the block
adds to the residual stream. Given is ours over theirs: the goal is at most 1.01. SmoothQuant's activations are rounded
to int8 a token by the same hooks on both sides.

llm-compressor gets an environment of its own under build/peers on first use, or `--python` names one.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import tempfile
import time
import venv
from pathlib import Path

import torch
from safetensors.torch import load_file

import studfinder as sf
from studfinder.models import load
from studfinder.quantizers import RTN, Scheme, calibration_windows, quantized
from studfinder.quantizers.activations import ActivationScheme, rounded_inputs
from studfinder.quantizers.apply import bench_for
from studfinder.quantizers.awq import AWQ
from studfinder.quantizers.gptq import GPTQ
from studfinder.quantizers.smoothquant import SmoothQuant
from studfinder.quantizers.targets import targets
from studfinder.quantizers.walk import walk

HERE = Path(__file__).resolve().parent
PEER = HERE.parent / "build" / "peers" / "llmcompressor"
VERSION = "0.14.0.1"


def environment() -> Path:
    """llm-compressor's own Python, installed on first use with the torch that is here; it pins its transformers."""
    python = PEER / "bin" / "python"
    done = PEER / f".installed-{VERSION}"
    if not done.exists():
        venv.create(PEER, with_pip=True)
        torch_here = torch.__version__.split("+")[0]
        subprocess.run(
            [python, "-m", "pip", "install", "-q", f"llmcompressor=={VERSION}", f"torch=={torch_here}"], check=True
        )
        done.touch()
    return python


def first_layers(count: int) -> sf.LM:
    """SmolLM2 with only its first layers, fp32."""
    lm = sf.load("smollm2", dtype="float32")
    model = copy.copy(lm.model.config)
    model.num_hidden_layers = count
    small = type(lm.model)(model).eval()
    missing = small.load_state_dict(lm.model.state_dict(), strict=False).missing_keys
    assert not missing, missing
    return load(small, tokenizer=lm.tokenizer)


@torch.no_grad()
def errors(lm: sf.LM, method: RTN | SmoothQuant, changed: dict[str, torch.Tensor], windows: list) -> list[float]:
    """The reconstruction error of each block with other parameters in it, fed by the unquantised model."""
    bench = bench_for(lm, RTN(scheme=Scheme(block="channel")), windows=windows)
    found = []
    for block in walk(bench):
        inputs, outputs = taken(lm, block)
        path = lm.anatomy.layers[block.layer].block
        old = {n: p.detach().clone() for n, p in lm.model.named_parameters() if n.startswith(path + ".")}
        write(lm, {name: changed[name] for name in old})
        if isinstance(method, SmoothQuant):
            with rounded_inputs(lm, ActivationScheme(), targets(lm)):
                after = block.run()
        else:
            after = block.run()
        write(lm, old)
        off = sum(float((a - b).square().sum()) for a, b in zip(after, outputs, strict=True))
        size = sum(float((b - x).square().sum()) for b, x in zip(outputs, inputs, strict=True))
        found.append(off / size)
    return found


def taken(lm: sf.LM, block) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What enters a block, and what it gives."""
    entering: list[torch.Tensor] = []
    module = lm.model.get_submodule(lm.anatomy.layers[block.layer].block)
    handle = module.register_forward_pre_hook(
        lambda _m, args, kwargs: entering.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    outputs = block.run()
    handle.remove()
    return entering, outputs


@torch.no_grad()
def write(lm: sf.LM, values: dict[str, torch.Tensor]) -> None:
    """Set parameters."""
    for name, value in values.items():
        lm.model.get_parameter(name).copy_(value)


def ours(lm: sf.LM, method, windows: list) -> tuple[dict[str, torch.Tensor], dict, float]:
    """Every parameter as it stands after quantising, what was put, and seconds."""
    began = time.perf_counter()
    with quantized(lm, method, windows=windows) as bench:
        seconds = time.perf_counter() - began
        return {n: p.detach().clone() for n, p in lm.model.named_parameters()}, dict(bench.done), seconds


def theirs(python: Path, folder: Path, windows: Path, name: str, group: int) -> tuple[dict[str, torch.Tensor], float]:
    """What llm-compressor makes, and the seconds of the whole process."""
    out = folder / f"{name}.safetensors"
    began = time.perf_counter()
    child = HERE / "peers" / "llm_compressor.py"
    made = subprocess.run(
        [python, child, folder, windows, out, name, str(group)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise SystemExit(f"llm-compressor failed on {name}:\n{made.stderr[-3000:]}")
    return load_file(out), time.perf_counter() - began


def same_codes(put: dict, peer: dict[str, torch.Tensor]) -> tuple[int, int]:
    """How many of the weights have the same code, and how many there are."""
    same = total = 0
    for name, one in put.items():
        codes = peer[name.removesuffix("weight") + "codes"]
        same += int((one.codes_RC == codes).sum())
        total += codes.numel()
    return same, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--python", type=Path, help="a Python that has llm-compressor")
    parser.add_argument("--methods", nargs="+", help="some of the methods")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    python = args.python or environment()

    lm = first_layers(args.layers)
    _, windows = calibration_windows(lm, count=args.samples + 4, length=args.length)
    calibration, held_back = windows[: args.samples], windows[args.samples :]
    w4 = Scheme(block=args.group, zero="integer", scale="float32")
    w8 = Scheme(element="int8", block="channel", scale="float32")
    methods = {
        "rtn": RTN(scheme=w4),
        "gptq": GPTQ(scheme=w4),
        "gptq, stored order": GPTQ(scheme=w4, order="stored"),
        "awq": AWQ(scheme=w4),
        "smoothquant": SmoothQuant(scheme=w8, activations=None, size="range"),
    }
    lines = [
        "| method | same codes | our error, calibration | ours / theirs, by layer | on other windows, by layer |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lm.model.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
        (folder / "windows.json").write_text(json.dumps(calibration), "utf-8")
        for label in args.methods or methods:
            method = methods[label]
            peer, _ = theirs(python, folder, folder / "windows.json", label, args.group)
            mine, put, _ = ours(lm, method, calibration)
            same, total = same_codes(put, peer)
            line = [label, "all" if same == total else f"{same / total:.2%}"]
            for judged in (calibration, held_back):
                a, b = errors(lm, method, mine, judged), errors(lm, method, peer, judged)
                if judged is calibration:
                    line.append(" ".join(f"{e:.3e}" for e in a))
                by_layer = ", ".join(f"{x / y:.4f}" for x, y in zip(a, b, strict=True))
                line.append(f"{sum(a) / sum(b):.4f} ({by_layer})")
            lines.append("| " + " | ".join(line) + " |")
            print(lines[-1], flush=True)
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()

"""Round to nearest and GPTQ, checkpoint to checkpoint: here, in llm-compressor and in torchao.

    python benchmarks/quantize.py [--model smollm2] [--group 64] [--rounds 5] [--threads 1]
    python benchmarks/quantize.py --method gptq --rounds 2        GPTQ on 64 windows of 512 tokens of wikipedia

Makes an environment for the peers under build/peers/quantizers (once; torch is pinned to the version installed here),
hands every library the same folder, and prints one table. Each time is that of a fresh process from the call to the
checkpoint on disk, imports aside; the rows take turns, and a ratio is the median over the rounds with their range.
"plain" reads every tensor, converts it to another 16-bit type and writes it: the same bytes in, without quantising.

Parity is checked on a copy in fp32, where both libraries compute in fp32: the share of integer codes, scales and zero
points that are identical; and on the checkpoint as it is, where llm-compressor computes in the weights' own type.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build" / "peers" / "quantizers"
PEERS = {"llmcompressor": "0.14.0.1", "torchao": "0.18.0"}
IGNORE = ["lm_head", "re:.*embed_tokens.*", "re:.*norm.*"]
WINDOWS = BUILD.parent / "quantize-work" / "windows.json"
"""Calibration token ids for the peer: those that studfinder reads by itself."""
SAMPLES, LENGTH = 64, 512


def plain(source: Path, out: Path, group: int, zero: str):
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    def work():
        for path in sorted(source.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            other = {torch.bfloat16: torch.float16, torch.float16: torch.bfloat16}
            save_file({n: t.to(other.get(t.dtype, t.dtype)) for n, t in tensors.items()}, out / path.name)

    out.mkdir()
    return work


def studfinder(source: Path, out: Path, group: int, zero: str):
    from studfinder.quantizers import RTN, Scheme
    from studfinder.verbs.quantize import quantize
    from studfinder.verbs.quantize_plan import shapes_of

    scale = str(shapes_of(source)[1]).removeprefix("torch.")
    method = RTN(scheme=Scheme(block=group, zero=zero, scale=scale))
    return lambda: quantize(source, method, out=out)


def _scheme(group: int, zero: str):
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    weights = QuantizationArgs(num_bits=4, symmetric=zero == "none", strategy="group", group_size=group)
    return QuantizationScheme(targets=["Linear"], weights=weights)


def llmcompressor_files(source: Path, out: Path, group: int, zero: str):
    from llmcompressor import model_free_ptq

    return lambda: model_free_ptq(str(source), str(out), scheme=_scheme(group, zero), ignore=IGNORE, device="cpu")


def llmcompressor_oneshot(source: Path, out: Path, group: int, zero: str):
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM

    def work():
        model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
        recipe = QuantizationModifier(config_groups={"group_0": _scheme(group, zero)}, ignore=["lm_head"])
        oneshot(model=model, recipe=recipe)
        model.save_pretrained(out, save_compressed=True)

    return work


def studfinder_gptq(source: Path, out: Path, group: int, zero: str):
    from studfinder.quantizers import Scheme
    from studfinder.quantizers.gptq import GPTQ
    from studfinder.verbs.quantize import quantize
    from studfinder.verbs.quantize_plan import shapes_of

    scale = str(shapes_of(source)[1]).removeprefix("torch.")
    method = GPTQ(scheme=Scheme(block=group, zero=zero, scale=scale))
    return lambda: quantize(source, method, out=out, samples=SAMPLES, length=LENGTH)


def llmcompressor_gptq(source: Path, out: Path, group: int, zero: str):
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache
    from transformers import AutoModelForCausalLM

    # 0.14 pins the memory of its cache, which fails where there is no accelerator.
    IntermediatesCache.pin_memory = lambda self, *_args: None
    ids = json.loads(WINDOWS.read_text())

    def work():
        model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
        data = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(one) for one in ids]})
        recipe = GPTQModifier(config_groups={"group_0": _scheme(group, zero)}, ignore=["lm_head"])
        options = {"max_seq_length": LENGTH, "num_calibration_samples": len(ids)}
        oneshot(model=model, dataset=data, recipe=recipe, **options)
        model.save_pretrained(out, save_compressed=True)

    return work


def torchao(source: Path, out: Path, group: int, zero: str):
    import torch
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup
    from torchao.quantization.quant_primitives import MappingType
    from transformers import AutoModelForCausalLM

    mapping = MappingType.ASYMMETRIC if zero == "integer" else MappingType.SYMMETRIC

    def work():
        model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
        config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(group), mapping_type=mapping)
        quantize_(model.model.layers, config)
        out.mkdir()
        torch.save(model.state_dict(), out / "model.pt")

    return work


ROWS = {
    "rtn": {
        "plain": plain,
        "studfinder": studfinder,
        "llm-compressor, from files": llmcompressor_files,
        "llm-compressor, oneshot": llmcompressor_oneshot,
        "torchao, Intx": torchao,
    },
    "gptq": {"studfinder": studfinder_gptq, "llm-compressor, oneshot": llmcompressor_gptq},
}
OURS = ("plain", "studfinder")


def child(method: str, row: str, source: str, out: str, group: str, zero: str, threads: str) -> None:
    """One row in a process of its own; prints the seconds."""
    import torch

    torch.set_num_threads(int(threads))
    folder = Path(out)
    shutil.rmtree(folder, ignore_errors=True)
    work = ROWS[method][row](Path(source), folder, int(group), zero)
    start = time.perf_counter()
    work()
    print(f"\nseconds {time.perf_counter() - start}")


def environment() -> Path:
    """The peers' Python, installed on first use with the torch of this one."""
    from importlib.metadata import version

    python = BUILD / "bin" / "python"
    if not (BUILD / ".installed").exists():
        venv.create(BUILD, with_pip=True)
        pins = BUILD / "constraints.txt"
        pins.write_text(f"torch=={version('torch').split('+')[0]}\n", "utf-8")
        wanted = [f"{name}=={number}" for name, number in PEERS.items()]
        subprocess.run([python, "-m", "pip", "install", "-q", "-c", pins, *wanted], check=True)
        (BUILD / ".installed").touch()
    return python


def ask(
    python: Path, row: str, source: Path, out: Path, options: argparse.Namespace, method: str = "rtn"
) -> float | str:
    """Seconds of one row, or why there are none."""
    interpreter = sys.executable if row in OURS else str(python)
    command = [interpreter, __file__, "--child", method, row, str(source), str(out), str(options.group), options.zero]
    done = subprocess.run(
        [*command, str(options.threads)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(options.threads), "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("seconds ")]
    if not found:
        return (done.stderr.strip().splitlines() or ["no output"])[-1][:160]
    return float(found[-1].split()[1])


def write_windows(model: str) -> None:
    """The calibration windows that studfinder takes by default, for the peer."""
    import studfinder as sf
    from studfinder.quantizers import calibration_windows

    _, windows = calibration_windows(sf.load(model), count=SAMPLES, length=LENGTH)
    WINDOWS.write_text(json.dumps([list(window) for window in windows]), "utf-8")


def in_fp32(source: Path, out: Path) -> Path:
    """A copy of a checkpoint in fp32."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(source, out)
    for path in out.glob("*.safetensors"):
        save_file({n: t.to(torch.float32) for n, t in load_file(path).items()}, path, metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    config["dtype"] = "float32"
    (out / "config.json").write_text(json.dumps(config))
    return out


def parity(ours: Path, theirs: Path, group: int) -> dict[str, float]:
    """Shares of identical codes, scales and zero points."""
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from safetensors.torch import load_file

    one, other = ({n: t for p in f.glob("*.safetensors") for n, t in load_file(p).items()} for f in (ours, theirs))
    same: dict[str, list[int]] = {}
    for name, tensor in one.items():
        kind = name.rpartition("weight_")[2]
        if kind not in ("packed", "scale", "zero_point") or "weight_" not in name:
            continue
        mine, yours = tensor, other[name]
        if kind != "scale":
            shape = tuple(one[name.replace(f"weight_{kind}", "weight_shape")].tolist())
            if kind == "zero_point":
                shape = (shape[0], shape[1] // group)
            axis = 0 if kind == "zero_point" else 1
            mine, yours = (unpack_from_int32(t, 4, torch.Size(shape), packed_dim=axis) for t in (mine, yours))
        counts = same.setdefault(kind, [0, 0])
        counts[0] += int((mine == yours).sum())
        counts[1] += mine.numel()
    return {kind: equal / total for kind, (equal, total) in same.items()}


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="a built-in name or a folder")
    parser.add_argument("--method", default="rtn", choices=list(ROWS))
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--zero", default="integer", choices=["integer", "none"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--python", type=Path, help="an environment that has the peers already")
    options = parser.parse_args()
    from studfinder.verbs.quantize_plan import folder_of

    source = folder_of(options.model)
    if source is None:
        raise SystemExit(f"{options.model} is no folder here")
    python = options.python or environment()
    work = BUILD.parent / "quantize-work"
    work.mkdir(parents=True, exist_ok=True)
    rows = ROWS[options.method]
    if options.method == "gptq":
        write_windows(options.model)
    times: dict[str, list[float]] = {row: [] for row in rows}
    for number in range(options.rounds):
        order = list(rows)
        for row in order[number % len(order) :] + order[: number % len(order)]:
            found = ask(python, row, source, work / row.replace(" ", "-"), options, options.method)
            if isinstance(found, str):
                print(f"{row}: {found}", file=sys.stderr)
            else:
                times[row].append(found)
    print(
        f"{options.model}, {options.method}, int4 group {options.group}, zero point {options.zero}, "
        f"{options.threads} thread(s)\n"
    )
    print(f"{'':30}{'seconds':>9}{'over plain':>20}{'over studfinder':>22}")
    for row, seconds in times.items():
        if seconds:
            print(
                f"{row:30}{statistics.median(seconds):9.2f}{_ratio(seconds, times.get('plain', [])):>20}"
                f"{_ratio(seconds, times['studfinder']):>22}"
            )
    if options.method != "rtn":
        return
    print()
    for label, folder in (("as it is", source), ("in fp32", in_fp32(source, work / "fp32"))):
        outs = [work / f"parity-{label.replace(' ', '-')}-{row}" for row in ("ours", "theirs")]
        for row, out in zip(("studfinder", "llm-compressor, oneshot"), outs, strict=True):
            failed = ask(python, row, folder, out, options)
            if isinstance(failed, str):
                raise SystemExit(f"{row}: {failed}")
        shares = parity(outs[0], outs[1], options.group)
        print(f"identical, {label}: " + ", ".join(f"{kind} {share:.6%}" for kind, share in shares.items()))


def _ratio(seconds: list[float], others: list[float]) -> str:
    ratios = [one / other for one, other in zip(seconds, others, strict=False)]
    if not ratios:
        return ""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


if __name__ == "__main__":
    main()

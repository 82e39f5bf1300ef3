"""How much each attention variant costs, as a ratio to SDPA in the same model.

    python benchmarks/attention.py --out docs/results/attention-speed.md

The model has SmolLM2-135M's shapes (hidden 576, 9 heads over 3 key/value heads of 64, feed-forward 1536) and
a small vocabulary. Plain model and variant run by turns; a pair gives one ratio, and the table has the median
with a bootstrap interval. On a shared machine use one thread (the default): the clock is then the thread's
own CPU time, which other processes do not stop. Peak memory is measured in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import studfinder.attention as sa
from studfinder.attention.clipped_softmax import naive

VARIANTS = {
    "kv_shift": (sa.KVShift(), "paper"),
    "gated, headwise": (sa.Gated(kind="headwise"), "fresh"),
    "gated, elementwise": (sa.Gated(kind="elementwise"), "fresh"),
    "gated, mlp": (sa.Gated(kind="mlp"), "fresh"),
    "sink_logit": (sa.SinkLogit(), "fresh"),
    "softmax_one": (sa.SoftmaxOne(), "fresh"),
    "attention_bias": (sa.AttentionBias(), "fresh"),
    "clipped_softmax": (sa.ClippedSoftmax(alpha=4, length=2048), "fresh"),
    "softpick": (sa.Softpick(), "fresh"),
    "differential": (sa.Differential(), "fresh"),
}
GOALS = {  # (forward, training step at 512, from 2048 on, decode); None: no goal was set
    "kv_shift": (None, 1.10, 1.05, 1.05),
    "gated, headwise": (1.05, 1.05, 1.05, 1.05),
    "sink_logit": (1.15, 1.15, 1.15, 1.15),
    "softmax_one": (1.15, 1.15, 1.15, 1.15),
    "attention_bias": (1.15, 1.15, 1.15, 1.15),
    "clipped_softmax": (4.0, 3.0, 3.0, None),
    "softpick": (4.0, 3.0, 3.0, None),
}
WORK = ("forward", "training step", "decode")


def plain(layers: int) -> LlamaForCausalLM:
    """The model without a variant."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=1024,
        max_position_embeddings=16384,
    )
    return LlamaForCausalLM(config)


def forward(model: LlamaForCausalLM, length: int) -> Callable[[], None]:
    """One forward pass without a cache."""
    ids = torch.randint(0, 1024, (1, length))

    def run() -> None:
        with torch.no_grad():
            model.eval()(ids, use_cache=False)

    return run


def training_step(model: LlamaForCausalLM, length: int) -> Callable[[], None]:
    """Forward and backward pass (the optimizer's step is the same for all)."""
    ids = torch.randint(0, 1024, (1, length))

    def run() -> None:
        model.train().zero_grad(set_to_none=True)
        model(ids, labels=ids, use_cache=False).loss.backward()

    return run


def decode(model: LlamaForCausalLM, length: int) -> Callable[[], None]:
    """Eight tokens, one by one, behind a cache of `length`."""
    cache, token = DynamicCache(config=model.config), torch.tensor([[5]])
    model.eval()  # not in the loop: it walks over all modules, which generation does not
    with torch.no_grad():
        model(torch.randint(0, 1024, (1, length)), past_key_values=cache)

    def run() -> None:
        with torch.no_grad():
            for _ in range(8):
                model(token, past_key_values=cache)

    return run


def seconds(run: Callable[[], None]) -> float:
    """CPU time of one thread, or wall time of several."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    run()
    return clock() - start


def ratio(base: Callable[[], None], variant: Callable[[], None], repetitions: int) -> dict[str, float]:
    """The median of paired ratios, its 90 % bootstrap interval, and the base's median seconds."""
    base(), variant()
    pairs = [(seconds(base), seconds(variant)) for _ in range(repetitions)]
    ratios = [b / a for a, b in pairs]
    draw = random.Random(0)
    medians = sorted(median(draw.choices(ratios, k=len(ratios))) for _ in range(2000))
    return {
        "ratio": median(ratios),
        "low": medians[100],
        "high": medians[1899],
        "pairs": repetitions,
        "base_seconds": median(a for a, _ in pairs),
    }


def peak(kind: str, length: int) -> float:
    """MiB that one clipped-softmax attention step (forward and backward, 9 heads) adds to a process's
    peak."""
    q, k, v = (torch.randn(1, h, length, 64, requires_grad=True) for h in (9, 3, 3))
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None] if kind == "dense" else None
    Path("/proc/self/clear_refs").write_text("5")  # Linux: start the high-water mark anew
    before = _status("VmRSS")
    if kind == "dense":
        out = naive.attend(q, k, v, mask, -4 / 2048)
    else:
        part = sa.ClippedSoftmax(alpha=4, length=2048).part(None, 0)  # type: ignore[arg-type]
        out = part.attend(q, k, v, None, True, 0.125)
    out.sum().backward()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def memory(lengths: list[int]) -> dict[str, dict[int, float]]:
    """Peak memory of the dense form and of the block form, each in a process of its own."""
    found: dict[str, dict[int, float]] = {"dense": {}, "blocks": {}}
    for kind, by_length in found.items():
        for length in lengths:
            if kind == "dense" and length > 4096:
                continue  # tens of gigabytes
            command = [sys.executable, __file__, "--peak", kind, str(length)]
            by_length[length] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def measure(
    lengths: list[int], names: list[str], quick: bool, keep: Callable[[dict], None]
) -> dict[str, dict[str, dict[int, dict]]]:
    """{work: {variant: {T: ratio}}}, handed to `keep` as it grows: a run takes long, and may be cut short."""
    work = {"forward": forward, "training step": training_step, "decode": decode}
    found: dict[str, dict[str, dict[int, dict]]] = {w: {n: {} for n in names} for w in WORK}
    for length in lengths:
        layers = 1 if length > 4000 else 2
        repetitions = 3 if quick else {512: 9, 2048: 5}.get(length, 2)
        for name in names:
            variant, init = VARIANTS[name]
            models = plain(layers), sa.convert(plain(layers), variant, init=init)
            for kind, prepare in work.items():
                times = 15 if kind == "decode" and not quick else repetitions
                result = ratio(*(prepare(model, length) for model in models), times)
                found[kind][name][length] = result
                print(f"{length:5} {name:20} {kind:14} {result['ratio']:.3f}", file=sys.stderr, flush=True)
            keep(found)
    return found


def goal(name: str, kind: str, length: int) -> float | None:
    """What was to be reached."""
    forward_, short, long, step = GOALS.get(name, (None,) * 4)
    return {"forward": forward_, "decode": step, "training step": short if length <= 512 else long}[kind]


def table(found: dict, used: dict, lengths: list[int]) -> str:
    """The page."""
    lines = [
        "# What the attention variants cost",
        "",
        f"Written by `python benchmarks/attention.py --threads {torch.get_num_threads()}`; "
        f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} thread(s), fp32, "
        "batch 1, SmolLM2-135M's shapes (2 layers; 1 at T = 8192).",
        "",
        "Time as a multiple of SDPA's in the same model: median of interleaved pairs [90 % interval]. A goal "
        "that was set and is missed is marked with its number.",
    ]
    for kind in WORK:
        lines += ["", f"## {kind}", "", "| variant | " + " | ".join(f"T = {t}" for t in lengths) + " |"]
        lines.append("|-|" + "-|" * len(lengths))
        for name, by_length in found[kind].items():
            cells = []
            for t in lengths:
                if t not in by_length:
                    cells.append("not run")
                    continue
                r, wanted = by_length[t], goal(name, kind, t)
                missed = f" **> {wanted}**" if wanted and r["ratio"] > wanted else ""
                cells.append(f"{r['ratio']:.2f} [{r['low']:.2f}, {r['high']:.2f}]{missed}")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        first = next(iter(found[kind].values()))
        base = [f"{first[t]['base_seconds'] * 1e3:.1f} ms" if t in first else "not run" for t in lengths]
        lines.append("| *SDPA itself* | " + " | ".join(base) + " |")
    lines += ["", "## Peak memory of clipped softmax, forward and backward, one layer of 9 heads (MiB)", ""]
    columns = sorted({t for by in used.values() for t in by})
    lines += ["| form | " + " | ".join(f"T = {t}" for t in columns) + " |", "|-|" + "-|" * len(columns)]
    for kind, by_length in used.items():
        cells = [f"{by_length[t]:.0f}" if t in by_length else "not run" for t in columns]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the page here, and the numbers beside it as .json")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--quick", action="store_true", help="three pairs each")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        print(peak(options.peak[0], int(options.peak[1])))
        return
    used = memory([1024, 2048, 4096, 8192])

    def keep(found: dict) -> None:
        if options.out:
            options.out.write_text(table(found, used, options.lengths), encoding="utf-8")
            numbers = json.dumps({"time": found, "memory_mib": used}, indent=1)
            options.out.with_suffix(".json").write_text(numbers + "\n", encoding="utf-8")

    found = measure(options.lengths, options.variants, options.quick, keep)
    print(table(found, used, options.lengths))


if __name__ == "__main__":
    main()

"""How much each attention variant costs, as a ratio to SDPA in the same model.

    python benchmarks/attention.py --out docs/results/attention-speed.md
    python benchmarks/attention.py --out docs/results/attention-speed.md --lengths 512 --variants kv_shift --again

The model has SmolLM2-135M's shapes (hidden 576, 9 heads over 3 key/value heads of 64, feed-forward 1536) and
a small vocabulary. Plain model and variant run by turns; a pair gives one ratio, and the table has the median
with a bootstrap interval. On a shared machine use one thread (the default): the clock is then the thread's
own CPU time, which other processes do not stop. Peak memory is measured in processes of their own.

A run is long and may be cut short at any time: every number is written as soon as it is there, and the next
run of the same command goes on where the last one stopped. `--again` measures anew what it is asked for.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import attention_peer as peer
import torch
from attention_page import TIMES, page
from attention_timing import paired_ratio
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import studfinder.attention as sa
from studfinder.attention.clipped_softmax import naive
from studfinder.runs import write_text

VARIANTS = {
    "kv_shift": (sa.KVShift(), "paper"),
    "gated, linear": (sa.Gated(kind="linear"), "fresh"),
    "gated, mlp": (sa.Gated(kind="mlp"), "fresh"),
    "gated, all-heads": (sa.Gated(kind="all-heads"), "fresh"),
    "gated, headwise": (sa.Gated(kind="headwise"), "fresh"),
    "gated, elementwise": (sa.Gated(kind="elementwise"), "fresh"),
    "sink_logit": (sa.SinkLogit(), "fresh"),
    "softmax_one": (sa.SoftmaxOne(), "fresh"),
    "attention_bias": (sa.AttentionBias(), "fresh"),
    "clipped_softmax": (sa.ClippedSoftmax(alpha=4, length=2048), "fresh"),
    "softpick": (sa.Softpick(), "fresh"),
    "differential": (sa.Differential(), "fresh"),
}
ROWS = [*VARIANTS, *peer.ROWS]
MEMORY = [("blocks", 1024), ("blocks", 2048), ("blocks", 4096), ("blocks", 8192)]
MEMORY += [("dense", 1024), ("dense", 2048), ("dense", 4096)]  # 8192 would take tens of gigabytes


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


def memory(form: str, length: int) -> float:
    """Peak memory of one form, in a process of its own."""
    command = [sys.executable, __file__, "--peak", form, str(length)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def timing(name: str, kind: str, length: int, rounds: int | None) -> dict[str, float]:
    """One cell of the table."""
    layers = 1 if length >= 4096 else 2
    rounds = rounds or (62 if kind == "decode" else 15 if length <= 512 else 9 if length < 4096 else 5)
    if name in peer.ROWS:
        return peer.ask(name, kind, length, layers, rounds)
    variant, init = VARIANTS[name]
    models = plain(layers), sa.convert(plain(layers), variant, init=init)
    prepare = {"forward": forward, "training step": training_step, "decode": decode}[kind]
    return paired_ratio(*(prepare(model, length) for model in models), rounds, balanced=kind == "decode")


def wanted(options: argparse.Namespace) -> Iterator[tuple[tuple[str, str, str], Callable[[], object]]]:
    """(where the number belongs, how to get it) of all that was asked for, short ones first."""
    if "memory" in options.work:
        for form, length in MEMORY:
            yield ("memory", form, str(length)), partial(memory, form, length)
    for length in options.lengths:
        for name in options.variants:
            for kind in options.work:
                if kind in (peer.KINDS if name in peer.ROWS else TIMES):
                    yield (kind, name, str(length)), partial(timing, name, kind, length, options.rounds)


def opened(path: Path | None, overwrite: bool) -> dict:
    """The numbers so far; refused where they come from other conditions."""
    now = {"torch": torch.__version__, "machine": platform.machine(), "threads": torch.get_num_threads()}
    if path is None or overwrite or not path.exists():
        return {"conditions": now, "time": {}, "memory": {}}
    numbers = json.loads(path.read_text("utf-8"))
    then = numbers.get("conditions")
    if then != now:
        sys.exit(f"{path} was measured with {then}, this is {now}: give another --out, or --overwrite")
    return numbers


def measure(options: argparse.Namespace, numbers: dict, keep: Callable[[], None]) -> None:
    """Fill in what is missing, or with `--again` all that was asked for."""
    for (kind, name, length), take in wanted(options):
        place = numbers["memory"] if kind == "memory" else numbers["time"].setdefault(kind, {})
        row = place.setdefault(name, {})
        if length in row and not options.again:
            continue
        row[length] = take()
        said = f"{row[length]:.0f} MiB" if kind == "memory" else f"{row[length]['ratio']:.3f}"
        print(f"{length:>5} {name:38} {kind:14} {said}", file=sys.stderr, flush=True)
        keep()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the page here, and the numbers beside it as .json")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--variants", nargs="+", default=ROWS, choices=ROWS, metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--work", nargs="+", default=[*TIMES, "memory"], choices=[*TIMES, "memory"])
    parser.add_argument("--rounds", type=int, help="pairs per number (by default 5 to 31, by length and work)")
    parser.add_argument("--again", action="store_true", help="measure anew what is asked for, also where known")
    parser.add_argument("--overwrite", action="store_true", help="forget the numbers of an earlier run")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        print(peak(options.peak[0], int(options.peak[1])))
        return
    file = options.out.with_suffix(".json") if options.out else None
    numbers = opened(file, options.overwrite)

    def drawn() -> str:
        return page(numbers, list(VARIANTS), peer.ROWS, peer.PINNED)

    def keep() -> None:
        if file:
            write_text(file, json.dumps(numbers, indent=1) + "\n")
            write_text(options.out, drawn())

    measure(options, numbers, keep)
    keep()
    print(drawn())


if __name__ == "__main__":
    main()

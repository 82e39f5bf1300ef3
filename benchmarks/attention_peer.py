"""x-transformers as a peer in benchmarks/attention.py: an environment of its own, and what runs in it.

The environment is made under build/peers at first use, with the torch that is installed here. There, this file is
the program: it times one option of the library against the library's plain model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from attention_timing import paired_ratio

PINNED = "2.31.10"
BUILD = Path(__file__).resolve().parents[1] / "build" / "peers"
OPTIONS = {  # row: the library's options (attn_flash is its fused kernel, which the learned sink refuses)
    "gate_value_heads": {"attn_gate_value_heads": True},
    "gate_values_headwise": {"attn_gate_values": True, "attn_gate_values_headwise": True},
    "gate_values": {"attn_gate_values": True},
    "num_mem_kv": {"attn_num_mem_kv": 1},
    "add_zero_kv": {"attn_add_zero_kv": True},
    "head_learned_sink": {"attn_head_learned_sink": True, "attn_flash": False},
    "shift_tokens": {"shift_tokens": 1},
}
ROWS = {  # the row of ours that has the same idea
    "x-transformers: gate_value_heads": "gated, all-heads",
    "x-transformers: gate_values_headwise": "gated, headwise",
    "x-transformers: gate_values": "gated, elementwise",
    "x-transformers: num_mem_kv": "attention_bias",
    "x-transformers: add_zero_kv": "softmax_one",
    "x-transformers: head_learned_sink": "sink_logit",
    "x-transformers: shift_tokens": "kv_shift",
}
KINDS = ("forward", "training step")


def environment() -> Path:
    """The peer's own Python, installed on first use with our torch."""
    folder = BUILD / "x-transformers"
    python = folder / "bin" / "python"
    done = folder / f".installed-{PINNED}"
    if not done.exists():
        venv.create(folder, with_pip=True)
        constraints = folder / "constraints.txt"
        pins = [f"{name}=={version(name).split('+')[0]}\n" for name in ("torch", "numpy")]
        constraints.write_text("".join(pins), "utf-8")
        install = [python, "-m", "pip", "install", "-q", "-c", constraints, f"x-transformers=={PINNED}"]
        subprocess.run(install, check=True)
        done.touch()
    return python


def ask(row: str, kind: str, length: int, layers: int, rounds: int) -> dict[str, float]:
    """Time one row in the peer's environment."""
    what = [row.partition(": ")[2], kind, length, layers, rounds, torch.get_num_threads()]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run([environment(), __file__, *map(str, what)], env=clean, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{row} failed:\n{run.stderr[-3000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def model(length: int, layers: int, options: dict[str, object]) -> torch.nn.Module:
    """The sizes of benchmarks/attention.py's model in the peer's words."""
    from x_transformers import Decoder, TransformerWrapper

    torch.manual_seed(0)
    sizes = {
        "dim": 576,
        "depth": layers,
        "heads": 9,
        "attn_kv_heads": 3,
        "attn_dim_head": 64,
        "attn_flash": True,
        "ff_mult": 1536 / 576,
        "ff_glu": True,
        "ff_swish": True,
        "ff_no_bias": True,
        "rotary_pos_emb": True,
        "rotary_emb_dim": 64,
        "use_rmsnorm": True,
    }
    decoder = Decoder(**{**sizes, **options})
    return TransformerWrapper(num_tokens=1024, max_seq_len=length, use_abs_pos_emb=False, attn_layers=decoder)


def work(net: torch.nn.Module, kind: str, length: int) -> Callable[[], None]:
    """One forward pass, or one forward and backward pass."""
    ids = torch.randint(0, 1024, (1, length))

    def forward() -> None:
        with torch.no_grad():
            net.eval()(ids)

    def training_step() -> None:
        net.train().zero_grad(set_to_none=True)
        logits = net(ids)
        torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).backward()

    return forward if kind == "forward" else training_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("option", choices=list(OPTIONS))
    parser.add_argument("kind", choices=KINDS)
    for number in ("length", "layers", "rounds", "threads"):
        parser.add_argument(number, type=int)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    pair = [
        work(model(asked.length, asked.layers, options), asked.kind, asked.length)
        for options in ({}, OPTIONS[asked.option])
    ]
    print(json.dumps(paired_ratio(*pair, asked.rounds)))


if __name__ == "__main__":
    main()

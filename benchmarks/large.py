"""A model larger than memory, made at random: what it takes to scan it, in memory and time.

    python benchmarks/large.py make FOLDER [--layers 32 --hidden 4096 --intermediate 11008]   13.8 GB
    python benchmarks/large.py watch FOLDER --limit 4GB -- studfinder scan FOLDER --memory 4GB ...
    python benchmarks/large.py passes FOLDER [--memory 4GB --tokens 2048]

`make` writes a Llama of random bf16 weights with one super weight planted in the last block but two. `watch` runs a
command, samples the memory that is its own (RssAnon; pages of files give way by themselves) and ends it where that is
above the limit; the samples go to FOLDER/memory.json, and --figure draws them. `passes` compares, in one process and in
turns, a pass that reads every weight from the disk with the same block runs on weights that are in memory, and with
reading the files.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, LlamaConfig

import studfinder as sf
from studfinder.models.builtin import BUILTINS, ensure
from studfinder.models.memory import as_bytes, in_bytes
from studfinder.models.paging import bring, let_go, mapped_spans
from studfinder.passes import carry
from studfinder.texts import batches

ROW, COLUMN = 7, 11


def make(folder: Path, layers: int, hidden: int, intermediate: int) -> None:
    donor = ensure(BUILTINS["smollm2"])
    words = AutoConfig.from_pretrained(donor).vocab_size
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 128,
        num_key_value_heads=hidden // 128,
        vocab_size=words,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"):
        if (donor / name).exists():
            shutil.copy(donor / name, folder)
    draw = torch.Generator().manual_seed(0)
    pool = torch.randn(1 << 24, generator=draw)

    def matrix(rows: int, columns: int, std: float = 0.02) -> torch.Tensor:
        """Draws of a pool of random numbers from another place each time: seven billion normal numbers take minutes."""
        start = int(torch.randint(len(pool) // 2, (), generator=draw))
        take = (torch.arange(rows * columns) * 3 + start) % (len(pool) - 3)
        return (pool[take] * std).to(torch.bfloat16).view(rows, columns)

    where: dict[str, str] = {}

    def shard(number: int, tensors: dict[str, torch.Tensor]) -> None:
        name = f"model-{number:05d}-of-{layers + 1:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        where.update(dict.fromkeys(tensors, name))

    shard(
        1,
        {
            "model.embed_tokens.weight": matrix(words, hidden, 1.0),
            "model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16),
            "lm_head.weight": matrix(words, hidden),
        },
    )
    for layer in range(layers):
        own = f"model.layers.{layer}."
        tensors = {own + f"self_attn.{one}_proj.weight": matrix(hidden, hidden) for one in "qkvo"}
        tensors |= {own + f"mlp.{one}_proj.weight": matrix(intermediate, hidden) for one in ("gate", "up")}
        tensors[own + "mlp.down_proj.weight"] = matrix(hidden, intermediate)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[own + f"{norm}.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
        if layer == layers - 3:
            for one in ("gate", "up"):
                tensors[own + f"mlp.{one}_proj.weight"][COLUMN] *= 8
            tensors[own + "mlp.down_proj.weight"][ROW, COLUMN] = 30.0
        shard(layer + 2, tensors)
        print(f"\rblock {layer + 1} of {layers}", end="", file=sys.stderr)
    size = sum((folder / name).stat().st_size for name in set(where.values()))
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    print(f"\n{folder}: {in_bytes(size)}; planted: layer {layers - 3} down_proj[{ROW}, {COLUMN}]")


def memory_of(process: int) -> dict[str, int]:
    """Bytes of a process and of its children."""
    found = {"RssAnon": 0, "RssFile": 0}
    for one in (process, *map(int, subprocess.run(["pgrep", "-P", str(process)], capture_output=True).stdout.split())):
        try:
            for line in Path(f"/proc/{one}/status").read_text().splitlines():
                name, _, rest = line.partition(":")
                if name in found:
                    found[name] += int(rest.split()[0]) << 10
        except OSError:
            pass
    return found


def watch(folder: Path, limit: int, command: list[str], figure: Path | None) -> int:
    began, samples = time.monotonic(), []
    process = subprocess.Popen(command)
    while process.poll() is None:
        now = memory_of(process.pid)
        samples.append([round(time.monotonic() - began, 2), now["RssAnon"], now["RssFile"]])
        if now["RssAnon"] > limit:
            process.send_signal(signal.SIGKILL)
            print(f"ended: {in_bytes(now['RssAnon'])} of its own, more than {in_bytes(limit)}")
        time.sleep(0.1)
    (folder / "memory.json").write_text(json.dumps(samples))
    peak = max(one[1] for one in samples)
    print(f"peak {in_bytes(peak)} of its own, {time.monotonic() - began:.0f} s, exit code {process.returncode}")
    if figure is not None:
        drawn(samples, limit, figure)
    return process.returncode


def drawn(samples: list[list[float]], limit: int, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    seconds, own, files = zip(*samples, strict=True)
    plot, axes = pyplot.subplots(figsize=(8, 3))
    axes.plot([one / 60 for one in seconds], [one / 1e9 for one in files], color="0.7", label="pages of files")
    axes.plot([one / 60 for one in seconds], [one / 1e9 for one in own], label="its own memory")
    axes.axhline(limit / 1e9, color="0.3", linestyle=":", label="limit")
    axes.set(xlabel="minutes", ylabel="GB", ylim=(0, None))
    axes.legend()
    plot.tight_layout()
    plot.savefig(path, dpi=120)


def passes(folder: Path, memory: int, tokens: int, rounds: int) -> None:
    lm = sf.load(folder, dtype="float32", memory=memory)
    if lm.memory is None or not lm.memory.streamed:
        sys.exit("it is not larger than that memory")
    draw = torch.Generator().manual_seed(1)
    windows = torch.randint(3, lm.anatomy.vocabulary, (tokens // 512, 512), generator=draw).tolist()
    spans = mapped_spans(lm.model)
    resident = replace(lm, memory=replace(lm.memory, streamed=False))

    def taken(one: sf.LM) -> float:
        began = time.perf_counter()
        for ends in carry(one, list(batches(windows))):
            ends.logits((0, slice(0, 1)))
        return time.perf_counter() - began

    def cold() -> None:
        let_go(spans)
        for file in folder.glob("*.safetensors"):
            handle = os.open(file, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)

    print("| reading, s | blocks on weights in memory, s | pass from the disk, s | over the longer of both |")
    print("| ---: | ---: | ---: | ---: |")
    taken(lm)
    for _ in range(rounds):
        cold()
        began = time.perf_counter()
        bring(spans)
        reading = time.perf_counter() - began
        inside = taken(resident)
        cold()
        outside = taken(lm)
        print(f"| {reading:.1f} | {inside:.1f} | {outside:.1f} | {outside / max(reading, inside):.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "watch", "passes"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--intermediate", type=int, default=11008)
    parser.add_argument("--limit", default="4GB")
    parser.add_argument("--memory", default="4GB")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--figure", type=Path)
    given, command = sys.argv[1:], []
    if "--" in given:
        at = given.index("--")
        given, command = given[:at], given[at + 1 :]
    asked = parser.parse_args(given)
    if asked.what == "make":
        make(asked.folder, asked.layers, asked.hidden, asked.intermediate)
    elif asked.what == "watch":
        sys.exit(watch(asked.folder, as_bytes(asked.limit), command, asked.figure))
    else:
        passes(asked.folder, as_bytes(asked.memory), asked.tokens, asked.rounds)


if __name__ == "__main__":
    main()

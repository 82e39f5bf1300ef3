"""llama.cpp's side: to GGUF, quantised, and run on the same windows."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environments import BUILD, environment, llama_command, llama_version
from kept import ask, command, made, original, record, record_path, windows

from studfinder.measures.divergence import Clean

THREADS = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count() or 1))
"""Its threads wait in loops: on a busy machine one is faster than two."""


def to_gguf(checkpoints: dict[str, Path], kind: str = "auto") -> dict[str, dict[str, Any]]:
    """Checkpoints as GGUF by llama.cpp's converter: by name the `file`, or the `error`."""
    (BUILD / "gguf").mkdir(parents=True, exist_ok=True)
    order = [
        {"folder": str(folder), "file": str(gguf(name)), "kind": kind, "out": str(record_path("converter", name))}
        for name, folder in checkpoints.items()
    ]
    ask("with_converter.py", environment("converter"), order)
    return {name: record("converter", name) or {} for name in checkpoints}


def gguf(name: str) -> Path:
    """Where a GGUF file is."""
    return BUILD / "gguf" / f"{name.replace(' ', '-')}.gguf"


def unquantised(model: str) -> Path:
    """The unquantised model in fp32, in which products are computed in fp32 too."""
    name = f"{model}-f32"
    found = to_gguf({name: original(model)}, "f32")[name]
    if "error" in found:
        raise RuntimeError(found["error"])
    return gguf(name)


def quantized(source: Path, name: str, kind: str, *, recipe: Path | None = None, imatrix: Path | None = None) -> Path:
    """A GGUF file quantised by llama-quantize, by a recipe's rules and with an imatrix where one is given."""
    out = gguf(name)
    if not out.exists():
        with made(out) as partial:
            options = ["--imatrix", imatrix] * (imatrix is not None)
            options += ["--tensor-type-file", recipe] * (recipe is not None)
            command([*llama_command("llama-quantize"), *options, source, partial, kind, THREADS])
    return out


def logits(file: Path, model: str) -> Iterator[torch.Tensor]:
    """Logits (T-1, W) of each window, of all tokens but the first. Raises RuntimeError if it does not run."""
    ids = windows(model)
    path = BUILD / f"windows-{model}.bin"
    path.write_bytes(struct.pack("2i", len(ids), len(ids[0])) + np.asarray(ids, np.int32).tobytes())
    backends = environment("llama.cpp") / "root" / "usr" / "lib" / "x86_64-linux-gnu" / "ggml" / "backends0"
    line = [*llama_command("llama-logits"), file, path, THREADS]
    run = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=backends)
    assert run.stdout is not None
    assert run.stderr is not None
    head = run.stdout.read(4)
    if len(head) == 4:
        (words,) = struct.unpack("i", head)
        for one in ids:
            found = run.stdout.read(4 * words * len(one))
            if len(found) < 4 * words * len(one):
                break
            yield torch.frombuffer(bytearray(found), dtype=torch.float32).view(len(one), words)[:-1]
    said = run.stderr.read().decode(errors="replace").strip()
    if run.wait():
        raise RuntimeError(f"llama.cpp ended with {run.returncode}: {said[-600:]}")


@cache
def cleans(model: str) -> list[Clean]:
    """The distributions of the unquantised model in llama.cpp itself."""
    file = unquantised(model)
    return [Clean([one], torch.tensor(ids[1:])) for one, ids in zip(logits(file, model), windows(model), strict=True)]


def measured(file: Path, model: str) -> dict[str, Any]:
    """KL(unquantised || this file), both in llama.cpp, by window, and log-probabilities of the text."""
    answer: dict[str, Any] = {"engine": "llama.cpp", "version": llama_version(), "bytes": file.stat().st_size}
    try:
        found = [clean.against([one]) for clean, one in zip(cleans(model), logits(file, model), strict=True)]
    except RuntimeError as error:
        return {**answer, "error": str(error)}
    kl = [float(kl_T.double().sum()) for kl_T, _ in found]
    return {**answer, "kl": kl, "logprobs": [(-nll_T).tolist() for _, nll_T in found]}

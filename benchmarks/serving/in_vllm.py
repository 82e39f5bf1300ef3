"""vLLM's side, in its own environment. Not to be started by hand.

    python in_vllm.py ORDER.json

Loads one checkpoint after the other in this process, and writes of each the log-probability of every token of its
windows given those before it, with what vLLM runs its matrices with. What it refuses it refuses with an error, which is
written then. A checkpoint that ends the process is the order's first without an answer.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import time
import traceback
from importlib.metadata import version
from pathlib import Path

import int4_stand_in

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # errors come here and not from a process of its own
os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # which asking the model for its classes needs
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

INNER = ("kernel", "linear_kernel", "fp8_linear", "mp_linear_kernel")


class Said(logging.Handler):
    """What vLLM's loaders log of kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if "ernel" in text or "CompressedTensors" in text:
            self.lines.append(text[:200])


def log_probabilities(llm, windows: list[list[int]]) -> list[list[float]]:
    """Of every token but the first, in nats."""
    from vllm import SamplingParams

    asked = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False)
    made = llm.generate([{"prompt_token_ids": ids} for ids in windows], asked, use_tqdm=False)
    return [
        [at[token].logprob for at, token in zip(one.prompt_logprobs[1:], ids[1:], strict=True)]
        for one, ids in zip(made, windows, strict=True)
    ]


def classes(model) -> dict[str, int]:
    """How many matrices of the blocks run by which of vLLM's classes, and by which kernel within."""
    counts: dict[str, int] = {}
    for module in model.modules():
        way = getattr(module, "scheme", None) or getattr(module, "quant_method", None)
        if way is None or not hasattr(module, "output_size"):
            continue
        inner = next((found for name in INNER if (found := getattr(way, name, None)) is not None), None)
        name = type(way).__name__ + (f" by {type(inner).__name__}" if inner is not None else "")
        counts[name] = counts.get(name, 0) + 1
    return counts


def answered(folder: str, windows: list[list[int]], dtype: str) -> dict:
    """What came of one checkpoint."""
    from vllm import LLM, _custom_ops  # noqa: F401 (which loads its operations)
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    if int4_stand_in.needed():
        int4_stand_in.install()
    answer: dict = {"int4 stood in for": int4_stand_in.installed()}
    said, logger, llm = Said(), logging.getLogger("vllm"), None
    logger.addHandler(said)
    try:
        llm = LLM(
            folder,
            skip_tokenizer_init=True,
            dtype=dtype,
            max_model_len=len(windows[0]) + 8,
            max_num_seqs=4,
            enforce_eager=True,
            enable_prefix_caching=False,
            seed=0,
        )
        answer["logprobs"] = log_probabilities(llm, windows)
        answer["runs"] = llm.apply_model(classes)[0]
    except Exception as error:  # whatever it is, it is the engine's answer
        answer["error"] = f"{type(error).__name__}: {error}"[:1500]
        answer["trace"] = traceback.format_exc()[-4000:]
    logger.removeHandler(said)
    del llm
    int4_stand_in.forget()
    gc.collect()
    cleanup_dist_env_and_memory()
    return {**answer, "said": sorted(set(said.lines))}


def main(order: str) -> None:
    given = json.loads(Path(order).read_text("utf-8"))
    for one in given["checkpoints"]:
        began = time.perf_counter()
        answer = answered(one["folder"], one["windows"], one["dtype"])
        seconds = round(time.perf_counter() - began, 1)
        answer |= {"engine": "vllm-cpu", "version": version("vllm-cpu"), "dtype": one["dtype"], "seconds": seconds}
        Path(one["out"]).write_text(json.dumps(answer), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])

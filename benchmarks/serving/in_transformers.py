"""Plain transformers' side: no line of studfinder reads a checkpoint here. Not to be started by hand.

    python in_transformers.py ORDER.json

Loads one checkpoint after the other, in fp32 where that runs, and writes of each the log-probability of every token of
its windows given those before it, and KL(original || it) at each of them, in nats; then all of it once more with the
sums of attention in another order, which is how far two right computations of this checkpoint lie apart.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from studfinder.measures.divergence import Clean


def loaded(folder: str, dtype: torch.dtype = torch.float32) -> tuple[Any, str]:
    """The model, and what it took to have it loaded. A checkpoint whose matrices cannot be held packed is asked for
    again with matrices taken back to floats as they are loaded."""
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval(), "as it is"
    except Exception as error:
        if not (Path(folder) / "config.json").read_text("utf-8").count("compressed-tensors"):
            raise
        from transformers import CompressedTensorsConfig

        first = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        config = CompressedTensorsConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=config)
        return model.eval(), f"with CompressedTensorsConfig(dequantize=True); as it is: {first}"


@torch.inference_mode()
def logits_of(model: Any, ids: list[int]) -> torch.Tensor:
    """Logits (T-1, W) that foretell all tokens but the first."""
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].float()


def cleans_of(folder: str, windows: list[list[int]]) -> list[Clean]:
    """The original's distributions at every window."""
    model, _ = loaded(folder)
    return [Clean([logits_of(model, ids)], torch.tensor(ids[1:])) for ids in windows]


def answered(folder: str, windows: list[list[int]], cleans: list[Clean], dtype: torch.dtype) -> dict[str, Any]:
    """What came of one checkpoint."""
    try:
        model, how = loaded(folder, dtype)
        found = [clean.against([logits_of(model, ids)]) for ids, clean in zip(windows, cleans, strict=True)]
        model.set_attn_implementation("eager")
        again = [-clean.against([logits_of(model, ids)])[1] for ids, clean in zip(windows, cleans, strict=True)]
    except Exception as error:  # whatever it is, it is the library's answer
        return {"error": f"{type(error).__name__}: {error}"[:1500], "dtype": str(dtype).removeprefix("torch.")}
    return {
        "how": how,
        "dtype": str(dtype).removeprefix("torch."),
        "kl": [float(kl_T.double().sum()) for kl_T, _ in found],
        "logprobs": [(-nll_T).tolist() for _, nll_T in found],
        "logprobs in another order": [logprobs_T.tolist() for logprobs_T in again],
    }


def main(order: str) -> None:
    given = json.loads(Path(order).read_text("utf-8"))
    cleans: list[Clean] = []
    original = None
    for one in given["checkpoints"]:
        began = time.perf_counter()
        if one["original"] != original:
            original, cleans = one["original"], cleans_of(one["original"], one["windows"])
        answer = answered(one["folder"], one["windows"], cleans, torch.float32)
        if "error" in answer:  # some formats are unpacked in the dtype of the config, whatever is asked for
            in_its_own = answered(one["folder"], one["windows"], cleans, torch.bfloat16)
            answer = {**in_its_own, "in float32": answer["error"].splitlines()[0][:200]}
        seconds = round(time.perf_counter() - began, 1)
        answer |= {"engine": "transformers", "version": version("transformers"), "seconds": seconds}
        Path(one["out"]).write_text(json.dumps(answer), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])

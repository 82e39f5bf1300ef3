"""llm-compressor's side, in its own environment. Not to be started by hand.

    python with_llm_compressor.py MODEL RECIPE.yaml OUT [WINDOWS.json]

Carries out a recipe on a model folder in fp32, on given token ids where it needs any, and saves the checkpoint as the
library does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.pipelines.cache import IntermediatesCache
from transformers import AutoModelForCausalLM

# 0.14 pins the memory of its cache, which fails where there is no accelerator.
IntermediatesCache.pin_memory = lambda self, *_args: None


def main(folder: str, recipe: str, out: str, windows: str | None = None) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    options = {}
    if windows is not None:
        ids = json.loads(Path(windows).read_text("utf-8"))
        data = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(one) for one in ids]})
        options = {"dataset": data, "max_seq_length": len(ids[0]), "num_calibration_samples": len(ids)}
    oneshot(model=model, recipe=recipe, **options)
    model.save_pretrained(out, save_compressed=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

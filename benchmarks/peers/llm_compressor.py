"""llm-compressor's side of `quantize_parity.py`, in its own environment. Not to be started by hand.

    python llm_compressor.py MODEL WINDOWS.json OUT.safetensors METHOD GROUP

Quantises a model folder on given token ids with the library's own calls and defaults, and writes every parameter as it
stands afterwards, rounded and scaled back, with the codes, scales and zero points of each matrix.
"""

from __future__ import annotations

import json
import sys

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

# 0.14 pins the memory of its cache, which fails where there is no accelerator.
IntermediatesCache.pin_memory = lambda self, *_args: None


def recipe(method: str, group: int) -> list:
    """The modifiers of a method; ranges from minimum and maximum, W4 in groups or W8 per channel."""
    if method == "smoothquant":
        args = QuantizationArgs(num_bits=8, symmetric=True, strategy="channel", observer="memoryless_minmax")
    else:
        args = QuantizationArgs(
            num_bits=4, symmetric=False, strategy="group", group_size=group, observer="memoryless_minmax"
        )
    options = {"config_groups": {"all": QuantizationScheme(targets=["Linear"], weights=args)}, "ignore": ["lm_head"]}
    return {
        "rtn": lambda: [QuantizationModifier(**options)],
        "gptq": lambda: [GPTQModifier(**options)],
        "gptq, stored order": lambda: [GPTQModifier(actorder=None, **options)],
        "awq": lambda: [AWQModifier(), QuantizationModifier(**options)],
        "smoothquant": lambda: [SmoothQuantModifier(smoothing_strength=0.5), QuantizationModifier(**options)],
    }[method]()


def main(folder: str, windows: str, out: str, method: str, group: str) -> None:
    with open(windows, encoding="utf-8") as file:
        ids = json.load(file)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    data = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(one) for one in ids]})
    oneshot(
        model=model,
        dataset=data,
        recipe=recipe(method, int(group)),
        max_seq_length=len(ids[0]),
        num_calibration_samples=len(ids),
    )
    made = {}
    for name, module in model.named_modules():
        if getattr(module, "quantization_scheme", None) is not None:
            args, scale, zero = module.quantization_scheme.weights, module.weight_scale, module.weight_zero_point
            codes = quantize(module.weight, scale, zero, args, dtype=torch.int8)
            dense = dequantize(codes, scale, zero, args, dtype=torch.float32)
            made.update({f"{name}.codes": codes, f"{name}.scale": scale, f"{name}.zero": zero, f"{name}.weight": dense})
    for name, parameter in model.named_parameters():
        if not name.endswith(("_scale", "_zero_point")):
            made.setdefault(name, parameter)
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in made.items()}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])

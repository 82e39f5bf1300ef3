"""GGUF files as plain Hugging Face models."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from studfinder.errors import StudfinderError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def read_gguf(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read a GGUF file, dequantised, into a model that can be saved and edited like any other.

    transformers marks the model it builds from GGUF as quantised and then refuses to save it, so the weights
    move into a fresh model of the same config without that mark.

    Raises:
        StudfinderError: not a GGUF file, or an architecture transformers cannot read from one.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise StudfinderError(f"{path} is not a GGUF file", expected="a file that begins with 'GGUF'")
    try:
        expanded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (ValueError, KeyError, NotImplementedError, IndexError, struct.error) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise StudfinderError(f"transformers cannot read {path} ({reason})") from None
    settings = expanded.config.to_dict()
    settings.pop("quantization_config", None)
    config = type(expanded.config).from_dict(settings)
    config.dtype = dtype
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(config, dtype=dtype)
    state = {name: tensor.to(dtype) for name, tensor in expanded.state_dict().items()}
    # Buffers such as rotary frequencies are not in the state dict; they are the expanded model's own, in fp32.
    buffers = dict(expanded.named_buffers())
    missing, unexpected = shell.load_state_dict(state, strict=False, assign=True)
    shell.tie_weights()
    for name, buffer in buffers.items():
        owner, _, leaf = name.rpartition(".")
        setattr(shell.get_submodule(owner), leaf, buffer)
    tied = set(getattr(shell, "_tied_weights_keys", None) or ())
    if unexpected or set(missing) - tied:
        raise StudfinderError(f"{path} lacks tensors: {sorted(set(missing) - tied)[:3]}")
    if expanded.generation_config is not None:
        shell.generation_config = expanded.generation_config
    return shell.eval(), tokenizer

"""Tiny GGUF files, written as llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter, get_tensor_name_map
from gguf.constants import MODEL_ARCH

_SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_MAPS = {
    "llama": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
    "gemma2": MODEL_ARCH.GEMMA2,
    "gemma3": MODEL_ARCH.GEMMA3,
}


def described(model: Any, architecture: str = "llama") -> dict[str, Any]:
    """The metadata of a model, by key without the architecture's name."""
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    fields = {key: getattr(config, name) for key, name in _SIZES.items()}
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    fields |= {"rope.freq_base": float(rope["rope_theta"]), "vocab_size": config.vocab_size}
    fields |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    if architecture == "llama":
        fields["rope.dimension_count"] = head_dim
    if architecture == "gemma3":
        fields["attention.sliding_window"] = config.sliding_window
        if rope["rope_type"] == "linear":
            fields |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope["factor"]}
    if architecture == "gemma2":
        fields |= {
            "attn_logit_softcapping": config.attn_logit_softcapping,
            "final_logit_softcapping": config.final_logit_softcapping,
            "attention.sliding_window": config.sliding_window,
        }
    return fields


def tensors_of(model: Any, architecture: str = "llama") -> dict[str, np.ndarray]:
    """A model's tensors under their GGUF names, fp32; a llama's queries and keys permuted as llama.cpp has them."""
    names = get_tensor_name_map(_MAPS[architecture], model.config.num_hidden_layers)
    tied = model.config.tie_word_embeddings
    found = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue
        weights = tensor.float().numpy()
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = model.config.num_attention_heads if "q_proj" in name else model.config.num_key_value_heads
            weights = weights.reshape(heads, 2, -1, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)
        if architecture.startswith("gemma") and "norm" in name:
            weights = weights + 1  # the converter folds the 1 into the gain
        found[names.get_name(name, try_suffixes=(".weight", ".bias"))] = np.ascontiguousarray(weights)
    return found


def write_gguf(
    path: Path, fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray], architecture: str = "llama"
) -> Path:
    """A GGUF file; keys with "general." or another root in front are written as they are."""
    writer = GGUFWriter(path, architecture)
    for key, value in fields.items():
        whole = key if key.split(".")[0] in ("general", "adapter", "clip", "split") else f"{architecture}.{key}"
        if isinstance(value, bool):
            writer.add_bool(whole, value)
        elif isinstance(value, int):
            writer.add_uint32(whole, value)
        elif isinstance(value, float):
            writer.add_float32(whole, value)
        elif isinstance(value, list):
            writer.add_array(whole, value)
        else:
            writer.add_string(whole, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

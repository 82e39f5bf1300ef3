"""What a GGUF file's metadata says about the computation, put into the config, or refused by name.

transformers reads some of the keys and passes over the others. Here every key below the architecture's name is either
an attribute of the config (set, and later verified by the shapes and by `check_rope`), one that must have the value
that the class computes with, or an error that names it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from studfinder.errors import StudfinderError
from studfinder.models.files import some
from studfinder.models.gguf_rope import Rope, rope_of

# What a key is called in configs; the first that the config has is set.
_SET: dict[str, tuple[str, ...]] = {
    "block_count": ("num_hidden_layers",),
    "embedding_length": ("hidden_size",),
    "context_length": ("max_position_embeddings", "n_positions"),
    "vocab_size": ("vocab_size",),
    "feed_forward_length": ("intermediate_size", "ffn_hidden_size", "n_inner"),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon"),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "use_parallel_residual": ("use_parallel_residual", "parallel_attn"),
    "expert_count": ("num_local_experts", "num_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size", "intermediate_size"),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_weights_norm": ("norm_topk_prob",),
    "shortconv.l_cache": ("conv_L_cache",),
}
# What a key must be where nothing computes it otherwise.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_feed_forward_length": (0,),
    "expert_shared_feed_forward_length": (0,),
    "expert_shared_count": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_weights_scale": (0.0, 1.0),
    "expert_weights_norm": (False,),
    "leading_dense_block_count": (0,),
    "interleave_moe_layer_step": (0, 1),
    "nextn_predict_layers": (0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "pooling_type": (0,),
    "swin_norm": (False,),
}
_HEAD_DIM = ("attention.key_length", "attention.value_length", "attention.key_length_swa", "attention.value_length_swa")
_ROPE = {
    f"rope.{name}" for name in ("dimension_count", "dimension_count_swa", "freq_base", "freq_base_swa", "scale_linear")
}
_NOTHING = {"tensor_data_layout", "rope.scaling.finetuned", "rope.scaling.yarn_orig_ctx"}
"""Keys that change no number: how the weights were laid out before, and what was trained after."""


def check_kind(name: str, fields: Mapping[str, Any]) -> str:
    """The architecture of a file that is a whole language model.

    Raises:
        StudfinderError: an adapter, a vision or audio projector, a part of several, or no architecture.
    """
    architecture, kind = fields.get("general.architecture"), str(fields.get("general.type", "model"))
    if not isinstance(architecture, str):
        raise StudfinderError(f"{name} has no general.architecture", expected="a GGUF file of a language model")
    if kind == "adapter" or any(key.startswith("adapter.") for key in fields):
        raise StudfinderError(
            f"{name} is an adapter (LoRA), not a model",
            expected="a GGUF file of a whole model",
            do="Merge it with llama-export-lora, or load the model it belongs to",
        )
    if kind == "mmproj" or architecture == "clip" or any(key.startswith("clip.") for key in fields):
        raise StudfinderError(
            f"{name} is a projector of images or sound (mmproj), not a language model",
            expected="a GGUF file of a whole model",
            do="Load the model that lies beside it",
        )
    if kind != "model":
        raise StudfinderError(f"{name} has general.type {kind!r}", expected="model")
    parts = int(fields.get("split.count", 0))
    if parts > 1:
        raise StudfinderError(
            f"{name} is part {int(fields.get('split.no', 0)) + 1} of {parts}",
            expected="one file",
            do="Join them: llama-gguf-split --merge FIRST-PART ONE-FILE",
        )
    return architecture


def honoured(
    name: str, config: Any, architecture: str, fields: Mapping[str, Any], factors: Mapping[str, torch.Tensor]
) -> tuple[Any, Rope | None]:
    """The config with everything that the metadata says about the computation, and the rope that must come out.

    Args:
        name: the file, for errors.
        config: what transformers made of the metadata.
        architecture: as the file calls it.
        fields: all of the metadata.
        factors: the file's rope factor tensors.

    Raises:
        StudfinderError: a key that the config cannot express; all of them are named.
    """
    front = f"{architecture}."
    said = {key.removeprefix(front): value for key, value in fields.items() if key.startswith(front)}
    settings = config.to_dict()
    refused: list[str] = []
    for key, value in said.items():
        if not _honour(key, value, config, settings, said):
            shown = value if not isinstance(value, list) or len(value) < 9 else f"[{len(value)} values]"
            refused.append(f"{key} = {shown:.6g}" if isinstance(value, float) else f"{key} = {shown}")
    if refused:
        raise StudfinderError(
            f"{name} says {some(refused)}, which {type(config).__name__} does not compute",
            expected="metadata that transformers can follow",
            do="Load the checkpoint that it was converted from",
        )
    if "query_pre_attn_scalar" in settings and "attention.scale" not in said:
        settings["query_pre_attn_scalar"] = _gemma_scale(architecture, said, settings)
    rope = None
    if isinstance(settings.get("rope_parameters"), dict):
        head_dim = settings.get("head_dim") or config.hidden_size // config.num_attention_heads
        rope = rope_of(name, said, factors, head_dim)
        old = settings["rope_parameters"]
        if "full_attention" in old:  # sliding layers have a base of their own and are never scaled
            local = {"rope_type": "default", "rope_theta": rope.local}
            settings["rope_parameters"] = {"full_attention": dict(rope.parameters), "sliding_attention": local}
        else:
            settings["rope_parameters"] = dict(rope.parameters)
        original = rope.parameters.get("original_max_position_embeddings")
        if original and "original_max_position_embeddings" in settings:  # phi3 keeps it there, too
            settings["original_max_position_embeddings"] = original
        settings.pop("rope_theta", None)
        settings.pop("rope_scaling", None)
        if "partial_rotary_factor" in settings:
            settings["partial_rotary_factor"] = rope.parameters.get("partial_rotary_factor", 1.0)
    elif factors:
        raise StudfinderError(f"{name} holds {some(factors)}, but {type(config).__name__} has no rotary positions")
    return type(config).from_dict(settings), rope


def _gemma_scale(architecture: str, said: Mapping[str, Any], settings: Mapping[str, Any]) -> float:
    """Gemma divides its scores by the root of this: no file says it, llama.cpp knows its largest models by depth."""
    largest = {"gemma2": 46, "gemma3": 62}.get(architecture)
    if said.get("block_count") == largest:
        return settings["hidden_size"] / settings["num_attention_heads"]
    return settings["head_dim"]


def _honour(key: str, value: Any, config: Any, settings: dict[str, Any], said: Mapping[str, Any]) -> bool:
    """Put one key into the settings; False if the class does not compute what it says."""
    kind = config.model_type
    if key in _NOTHING or key in _ROPE or key.startswith("rope.scaling."):
        return key not in _ROPE or "rope_parameters" in settings or not value
    if isinstance(value, list):
        if kind == "lfm2" and key == "attention.head_count_kv":  # 0 marks a layer of convolution
            types = ["full_attention" if heads else "conv" for heads in value]
            return {*value} <= {0, config.num_key_value_heads} and types == list(config.layer_types)
        if key == "attention.sliding_window_pattern":
            layers = getattr(config, "layer_types", None)
            return layers is not None and value == [each == "sliding_attention" for each in layers]
        if len(set(value)) != 1:
            return False
        value = value[0]
    if key in _HEAD_DIM:
        if "head_dim" in settings and key == "attention.key_length":
            settings["head_dim"] = value
        return value == said.get("attention.key_length", value) and value == (
            settings.get("head_dim") or config.hidden_size // config.num_attention_heads
        )
    if key == "attention.scale":
        if "query_pre_attn_scalar" in settings:
            settings["query_pre_attn_scalar"] = value**-2
            return True
        head_dim = settings.get("head_dim") or config.hidden_size // config.num_attention_heads
        return math.isclose(value, head_dim**-0.5, rel_tol=1e-5)
    if key == "attention.max_alibi_bias":
        return value == (8.0 if kind == "bloom" or getattr(config, "alibi", False) else 0.0)
    if key == "expert_gating_func":
        return value == (3 if kind == "gpt_oss" else 1)
    if key == "attention.head_count_kv" and kind == "falcon" and not config.new_decoder_architecture:
        return value == (1 if config.multi_query else config.num_attention_heads)
    return _set(key, value, config, settings)


def _set(key: str, value: Any, config: Any, settings: dict[str, Any]) -> bool:
    names = {short: long for long, short in (getattr(config, "attribute_map", None) or {}).items()}
    for attribute in _SET.get(key, ()):
        own = attribute if attribute in settings else config.attribute_map.get(attribute, attribute)
        if own in settings or own in names:
            now = settings.get(own)
            if key == "feed_forward_length" and now is None:
                return value == 4 * config.hidden_size
            if isinstance(value, bool) or isinstance(now, bool):
                settings[own] = bool(value)
            elif not (isinstance(now, float) and math.isclose(now, value, rel_tol=1e-6)):
                settings[own] = None if value in _NEUTRAL.get(key, ()) and not now else value
            return True
    if key == "attention.head_count_kv":
        return value == config.num_attention_heads
    if key == "feed_forward_length":
        return value == 4 * config.hidden_size
    return value in _NEUTRAL.get(key, ())

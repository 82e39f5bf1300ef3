"""Tiny random models of every architecture, made from their configs."""

from __future__ import annotations

import copy
import functools

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from studfinder.models import LM, load

V, C, F, L, H, D = 96, 32, 48, 3, 4, 8

_COMMON = {
    "vocab_size": V,
    "hidden_size": C,
    "intermediate_size": F,
    "num_hidden_layers": L,
    "num_attention_heads": H,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_WITHOUT_GQA = {name: value for name, value in _COMMON.items() if name != "num_key_value_heads"}
_HEAD_DIM = {"head_dim": D}
_GPT = {
    "vocab_size": V,
    "n_embd": C,
    "n_layer": L,
    "n_head": H,
    "n_positions": 128,
    "n_inner": F,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": F, "decoder_sparse_step": 1}

CONFIGS: dict[str, dict] = {
    "llama": _COMMON,
    "mistral": {**_COMMON, "sliding_window": 6},
    "qwen2": _COMMON,
    "qwen3": {**_COMMON, **_HEAD_DIM},
    "gemma": {**_COMMON, **_HEAD_DIM},
    "gemma2": {**_COMMON, **_HEAD_DIM, "query_pre_attn_scalar": D, "sliding_window": 6},
    "gemma3_text": {**_COMMON, **_HEAD_DIM, "query_pre_attn_scalar": D, "sliding_window": 6},
    "phi": {**_COMMON, "partial_rotary_factor": 0.5},
    "phi3": _COMMON,
    "olmo": _COMMON,
    "olmo2": _COMMON,
    "stablelm": {**_COMMON, "partial_rotary_factor": 0.5, "qk_layernorm": True},
    "gpt2": _GPT,
    "gpt_neo": {
        "vocab_size": V,
        "hidden_size": C,
        "intermediate_size": F,
        "num_layers": L,
        "num_heads": H,
        "attention_types": [[["global", "local", "global"], 1]],
        "window_size": 6,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "gpt_neox": {**_WITHOUT_GQA, "rotary_pct": 0.5},
    "opt": {**_WITHOUT_GQA, "ffn_dim": F, "word_embed_proj_dim": C},
    "falcon": {
        **_COMMON,
        "ffn_hidden_size": F,
        "multi_query": True,
        "alibi": False,
        "new_decoder_architecture": False,
    },
    "bloom": {
        "vocab_size": V,
        "hidden_size": C,
        "n_layer": L,
        "n_head": 2,  # its attention is eager: each head costs
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "mixtral": {**_COMMON, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**_COMMON, **_MOE, "shared_expert_intermediate_size": F},
    "qwen3_moe": {**_COMMON, **_HEAD_DIM, **_MOE},
    "gpt_oss": {
        **_COMMON,
        **_HEAD_DIM,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 6,
    },
    "lfm2": {
        **_COMMON,
        "block_ff_dim": F,
        "block_auto_adjust_ff_dim": False,
        "layer_types": ["conv", "full_attention", "conv"],
    },
    "qwen3_next": {
        **_COMMON,
        **_HEAD_DIM,
        **_MOE,
        "shared_expert_intermediate_size": F,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
}
ARCHITECTURES = sorted(CONFIGS)
UNLIKE = ("bloom", "gemma3_text", "gpt2", "gpt_oss", "lfm2", "llama", "mixtral", "qwen3_next")
"""Those that differ most, for whole scans: what a scan is made of is tried on all."""


def tiny(architecture: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, attention: str | None = None) -> LM:
    """A fresh random model of an architecture."""
    config = copy.deepcopy(_config(architecture))  # tests change their model's
    torch.manual_seed(seed)
    options = {} if attention is None else {"attn_implementation": attention}
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, **options).eval()
    # Some configs start biases, sinks and gains at 0 or 1; noise makes a wrong place visible.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return load(model)


@functools.cache
def _config(architecture: str) -> transformers.PretrainedConfig:
    return AutoConfig.for_model(architecture, **CONFIGS[architecture])


def two_way(seed: int = 0, **settings: object) -> LM:
    """A Gemma 3 whose tokens see those after them, as EmbeddingGemma's do."""
    sizes = {**CONFIGS["gemma3_text"], **settings, "use_bidirectional_attention": True}
    config = AutoConfig.for_model("gemma3_text", **sizes)
    torch.manual_seed(seed)
    return load(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())


def token_ids(batch: int = 2, length: int = 12, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, V, (batch, length), generator=generator)


def tokenizer(words: int = V - 3) -> transformers.PreTrainedTokenizerFast:
    """A word-level tokenizer for the tiny models: the words w3, w4, ... are the ids 3, 4, ..., with BOS in front."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 3 + words)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="</s>"
    )


def prompts(lengths: tuple[int, ...] = (9, 14, 6, 11), seed: int = 0) -> list[list[int]]:
    """Random prompts of unequal lengths, as token ids."""
    return [token_ids(1, length, seed + i)[0].tolist() for i, length in enumerate(lengths)]

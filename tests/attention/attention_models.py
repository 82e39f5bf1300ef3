"""Tiny models of every base, and masks, for the tests beside this file."""

from __future__ import annotations

import torch
import transformers

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "vocab_size": 61,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attn_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
}
OPT = {
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 61,
    "max_position_embeddings": 128,
    "word_embed_proj_dim": 32,
    "dropout": 0.0,
}
WINDOW = 5
BASES = {
    "llama": ("LlamaConfig", SIZES),
    "mistral": ("MistralConfig", {**SIZES, "sliding_window": WINDOW}),
    "qwen2": ("Qwen2Config", SIZES),
    "qwen3": ("Qwen3Config", {**SIZES, "head_dim": 8}),
    "gemma": ("GemmaConfig", {**SIZES, "head_dim": 8}),
    "gemma2": (
        "Gemma2Config",
        {**SIZES, "head_dim": 8, "sliding_window": WINDOW, "attn_logit_softcapping": None},
    ),
    "gemma3_text": ("Gemma3TextConfig", {**SIZES, "head_dim": 8, "sliding_window": WINDOW}),
    "gpt2": ("GPT2Config", GPT2),
    "opt": ("OPTConfig", OPT),
}


def tiny(base: str = "llama", dtype: torch.dtype = torch.float64, seed: int = 0, **changes: object):
    """A tiny random model, weights large enough for attention to be uneven."""
    torch.manual_seed(seed)
    config, sizes = BASES[base]
    made = getattr(transformers, config)(**{**sizes, **changes})
    model = transformers.AutoModelForCausalLM.from_config(made)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and "embed" not in name and "wte" not in name and "wpe" not in name:
                parameter.normal_(0, 0.25)
    return model.to(dtype).eval()


def tokens(batch: int = 2, length: int = 13, seed: int = 1) -> torch.Tensor:
    """Random token ids without the special ones."""
    return torch.randint(3, 61, (batch, length), generator=torch.Generator().manual_seed(seed))


def causal_mask(queries: int, keys: int) -> torch.Tensor:
    """(1, 1, T, S) bool; queries stand at the last places."""
    place = torch.arange(keys - queries, keys)
    return (place[:, None] >= torch.arange(keys))[None, None]

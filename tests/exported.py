"""Tiny models with matrices that are no targets, wide enough for every scheme; and a process that reloads many."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from studfinder.models import LM, load
from tiny import ARCHITECTURES, CONFIGS, V, tokenizer

WIDTH, FEED = 128, 256
_WIDE = {
    **dict.fromkeys(("hidden_size", "n_embd", "word_embed_proj_dim"), WIDTH),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "block_ff_dim"), FEED),
    **dict.fromkeys(("head_dim", "query_pre_attn_scalar"), WIDTH // 4),
}
FUSED = ("gpt_oss", "mixtral", "qwen2_moe", "qwen3_moe", "qwen3_next")
"""Their experts are one parameter: only symmetric schemes reach them in a packed checkpoint."""
PLAIN_FAMILIES = tuple(name for name in ARCHITECTURES if name not in FUSED)
SPECIAL = ("opt-350m", "gemma3", "remote")
KINDS = (*PLAIN_FAMILIES, *SPECIAL)

REMOTE = """
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from .parts import Gate


class OwnConfig(LlamaConfig):
    model_type = "llama"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.gate = Gate(config.hidden_size)
        self.heads = nn.ModuleList(nn.Linear(config.hidden_size, config.vocab_size, bias=False) for _ in range(2))
        self.post_init()

    def forward(self, input_ids=None, **options):
        out = super().forward(input_ids=input_ids, output_hidden_states=True, **options)
        hidden = self.gate(out.hidden_states[-1])
        out.logits = out.logits + sum(head(hidden) for head in self.heads)
        return out
"""
PARTS = """
from torch import nn


class Gate(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.inner = nn.Linear(size, size)

    def forward(self, hidden):
        return self.inner(hidden).sigmoid() * hidden
"""


def model_of(kind: str, folder: Path, dtype: torch.dtype = torch.bfloat16) -> LM:
    """A model of one of KINDS; "remote" is written to `folder` and loaded from it."""
    torch.manual_seed(0)
    if kind == "remote":
        return load(remote(folder, dtype), trust_remote_code=True)
    return load(_noisy(AutoModelForCausalLM.from_config(config_of(kind), dtype=dtype)), tokenizer())


def config_of(kind: str):
    if kind == "gemma3":
        text = {name: _WIDE.get(name, value) for name, value in CONFIGS["gemma3_text"].items()}
        vision = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
        }
        return AutoConfig.for_model(
            "gemma3",
            text_config=text,
            vision_config=vision,
            mm_tokens_per_image=4,
            image_token_index=V - 1,
            boi_token_index=V - 2,
            eoi_token_index=V - 3,
        )
    name = "opt" if kind == "opt-350m" else kind
    settings = {name: _WIDE.get(name, value) for name, value in copy.deepcopy(CONFIGS[name]).items()}
    if kind == "opt-350m":
        settings |= {"word_embed_proj_dim": 64, "do_layer_norm_before": False}
    return AutoConfig.for_model(name, **settings)


def remote(folder: Path, dtype: torch.dtype) -> Path:
    """A checkpoint that brings its own code: a gate and two further heads, all of them Linear and no targets."""
    model = _noisy(AutoModelForCausalLM.from_config(config_of("llama"), dtype=dtype))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["gate.inner.weight"] = torch.randn(WIDTH, WIDTH).to(dtype) * 0.1
    state["gate.inner.bias"] = torch.zeros(WIDTH, dtype=dtype)
    for i in range(2):
        state[f"heads.{i}.weight"] = torch.randn(V, WIDTH).to(dtype) * 0.05
    model.save_pretrained(folder, state_dict=state)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["OwnForCausalLM"]
    config["auto_map"] = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_own.py").write_text(REMOTE)
    (folder / "parts.py").write_text(PARTS)
    tokenizer().save_pretrained(folder)
    return folder


def _noisy(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model.eval()


def image() -> torch.Tensor:
    return torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def image_logits(model) -> torch.Tensor:
    """Logits of a prompt with an image in it."""
    ids = torch.tensor([[3, V - 2, *[V - 1] * 4, V - 3, 5, 6]])
    kinds = (ids == V - 1).long()
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=image().to(model.dtype), token_type_ids=kinds, use_cache=False).logits


_FRESH = """
import json, sys, torch
sys.modules["studfinder"] = None  # importing it is an error
import transformers
from transformers import AutoModelForCausalLM
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)
ids, V, folders = json.loads(sys.stdin.read())
for folder, trust in folders:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust).eval()
    found = {}
    with torch.no_grad():
        found["logits"] = model(input_ids=torch.tensor(ids), use_cache=False).logits
        if model.config.model_type == "gemma3":
            image = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)).to(model.dtype)
            tokens = torch.tensor([[3, V - 2, *[V - 1] * 4, V - 3, 5, 6]])
            kinds = (tokens == V - 1).long()
            found["image"] = model(input_ids=tokens, pixel_values=image, token_type_ids=kinds, use_cache=False).logits
    torch.save(found, folder + "/found.pt")
"""


def reloaded(folders: list[Path], ids: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Logits of many checkpoints by plain transformers, in one process that cannot import studfinder."""
    given = json.dumps([ids.tolist(), V, [(str(one), (one / "modeling_own.py").exists()) for one in folders]])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", _FRESH], input=given, text=True, check=True, env=environment)
    return [torch.load(folder / "found.pt") for folder in folders]

"""Tiny live models of many architectures, from the configurations in architectures/ (transformers' own, made small)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig

FOLDER = Path(__file__).parent / "architectures"
PARTS: dict[str, dict] = json.loads((FOLDER / "parts.json").read_text())
"""By type: where its parts are, listed by name patterns and checked by eye; see `parts_of`."""
TYPES = sorted(kind for kind, parts in PARTS.items() if "auto" in parts)

_KEPT = re.compile(r"conv|A_log|dt_|time_|decay|\.D$|lambda|norm|ln_|layernorm", re.IGNORECASE)
"""Parameters that stay as their class starts them: recurrences explode with any others."""
_LOUD = re.compile(r"embed|lm_head|wte|word_embeddings|embed_tokens|embeddings\.weight|output\.weight")


def built(kind: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """A live random model of a type: finite logits that depend on the input and on every block."""
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(FOLDER / f"{kind}.json")
    if settings:
        config = AutoConfig.for_model(**{**json.loads((FOLDER / f"{kind}.json").read_text()), **settings})
    auto = getattr(transformers, PARTS[kind]["auto"])
    model = auto.from_config(config, dtype=dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and not _KEPT.search(name):
                spread = 0.5 if _LOUD.search(name) else 0.05
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    return model

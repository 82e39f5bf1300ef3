"""Which model is trained: a Hugging Face config of our sizes, and variants of attention put into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from studfinder.attention import VARIANTS, Variant, convert
from studfinder.attention.variant import variant_class
from studfinder.errors import StudfinderError, unknown
from studfinder.models import anatomy_of
from studfinder.records.config import Config, option, worded

_FROM_SCRATCH = ("paper", "fresh")
"""Starts that suit an untrained model, best first; "identity" exists to keep a trained one."""
_FRESH_FIRST = frozenset({"gated"})


@dataclass(frozen=True, kw_only=True)
class ModelShape(Config):
    """The sizes of a model from scratch.

    Attributes:
        architecture: "llama" (RoPE, RMSNorm, SwiGLU) or "opt" (learned positions, LayerNorm, ReLU).
        layers, hidden, heads: blocks, width C, query heads H.
        kv_heads: key/value heads G; None is as many as heads.
        intermediate: feed-forward width F; None is 8/3 of the width for llama and 4 times for opt, in steps of 8.
        tied: whether the head is the embedding matrix.
        rope_base: of the rotary angles.
        init_std: of every matrix at the start.
        scaled_init: divide what writes to the residual stream by sqrt(2 layers) then (as GPT-2).
        dropout: on hidden states (opt only).
    """

    architecture: Literal["llama", "opt"] = "llama"
    layers: int = option(2, least=1)
    hidden: int = option(64, least=1)
    heads: int = option(4, least=1)
    kv_heads: int | None = None
    intermediate: int | None = None
    tied: bool = False
    rope_base: float = 100_000.0
    init_std: float = 0.02
    dropout: float = 0.0
    scaled_init: bool = option(False, late=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden % self.heads:
            raise StudfinderError(f"width {self.hidden} with {self.heads} heads", expected="a width that they divide")
        if self.architecture == "llama" and self.hidden // self.heads % 2:
            raise StudfinderError(
                f"{self.hidden} dims in {self.heads} heads leave {self.hidden // self.heads} a head",
                expected="an even number, which RoPE turns in pairs",
            )
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise StudfinderError(f"{self.kv_heads} key/value heads do not divide {self.heads} heads")


def build_model(shape: ModelShape, variants: Sequence[Variant], *, vocabulary: int, length: int, seed: int) -> Any:
    """A model from scratch, fp32, the same for the same seed.

    Args:
        variants: put in one after the other; a start that was not said is the one for untrained models.
        vocabulary: token ids V.
        length: the longest sequence it will see.
    """
    config = _config(shape, vocabulary, length)
    torch.manual_seed(seed)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    if shape.scaled_init:
        written = [ref for layer in anatomy_of(model).layers for ref in (*layer.writers, layer.mixers[0].output)]
        with torch.no_grad():
            for ref in filter(None, written):
                model.get_parameter(ref.parameter).div_((2 * shape.layers) ** 0.5)
    return put_in(model, variants)


def put_in(model: Any, variants: Sequence[Variant], *, trained: bool = False) -> Any:
    """Convert a model to the variants, one after the other; `trained` keeps each variant's exact start."""
    for variant in variants:
        model = convert(model, variant, init=None if trained else variant.init or scratch_start(variant))
    return model


def scratch_start(variant: Variant) -> str:
    """The start of a variant in an untrained model."""
    order = reversed(_FROM_SCRATCH) if variant.name in _FRESH_FIRST else _FROM_SCRATCH
    return next((start for start in order if start in variant.inits), variant.inits[0])


def variants_from(texts: Sequence[str]) -> list[Variant]:
    """Variants from their names and settings, e.g. "kv_shift", "gated:kind=linear,pi_init=0.25"; "vanilla" is none.

    Raises:
        StudfinderError: an unknown variant or setting.
    """
    return [_variant(text) for text in texts if text != "vanilla"]


def _variant(text: str) -> Variant:
    name, _, rest = text.partition(":")
    name = name.replace("-", "_")
    if name not in VARIANTS:
        raise unknown("there is no attention", text, ("vanilla", *VARIANTS))
    return worded(variant_class(name), rest, f"attention {name}")


def _config(shape: ModelShape, vocabulary: int, length: int) -> Any:
    from transformers import LlamaConfig, OPTConfig

    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": length,
        "tie_word_embeddings": shape.tied,
        "use_cache": False,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
    }
    if shape.architecture == "opt":
        return OPTConfig(
            word_embed_proj_dim=shape.hidden,
            ffn_dim=shape.intermediate or 4 * shape.hidden,
            init_std=shape.init_std,
            dropout=shape.dropout,
            **sizes,
        )
    return LlamaConfig(
        num_key_value_heads=shape.kv_heads or shape.heads,
        intermediate_size=shape.intermediate or -(-8 * shape.hidden // 3 // 8) * 8,
        initializer_range=shape.init_std,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_base},
        **sizes,
    )

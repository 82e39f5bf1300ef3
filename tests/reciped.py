"""Recipes of tiny models of many architectures, for the tests of writers and of the real libraries' matchers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from architected import built
from studfinder.models import LM, Source, anatomy_of
from studfinder.recipes import RuleSet, read_rules_file, rule_set, tool_named, written
from studfinder.records import ModelCard, Recipe
from studfinder.records.loading import SourceConfig
from studfinder.verbs.recipe import recipe_for
from studfinder.verbs.recipe_outline import Outline, outline_of

ARCHITECTURES = (
    "llama",
    "qwen3",
    "gemma3_text",
    "mixtral",
    "qwen3_moe",
    "olmoe",
    "deepseek_v2",
    "phi3",
    "gpt_neox",
    "qwen3_next",
)
"""Separate and fused projections, experts by two names, shared experts, latent and linear attention."""

FORMATS: dict[str, tuple[str, ...]] = {
    "llm-compressor": ("int4-g8-zero", "int8-channel+int8", "fp8+fp8", "16"),
    "gptqmodel": ("int4-g8-zero", "int8-channel", "int3-g8", "16"),
    "auto-round": ("int4-g8", "int8-channel", "fp8+fp8", "16"),
    "torchao": ("int4-g8-zero", "int8-channel+int8", "fp8", "16"),
    "modelopt": ("int4-g8", "fp8+fp8", "int8-channel+int8", "16"),
    "llama.cpp": ("int4-g8-zero", "int8-channel", "int6-g8", "16"),
    "mlx": ("int4-g8", "int8-g8", "16"),
    "bitsandbytes": ("int4-g8", "16"),
}


@cache
def outlined(kind: str, **settings: int) -> Outline:
    """The matrices of a tiny live model."""
    model = built(kind, **settings)
    return outline_of(LM(model, None, anatomy_of(model), Source(kind, "made here", None)), SourceConfig())


def card(outline: Outline) -> ModelCard:
    anatomy = outline.lm.anatomy
    sizes: dict[str, Any] = dict.fromkeys(("heads", "kv_heads", "head_dim", "intermediate", "vocabulary"), 1)
    sizes |= {"layers": len(anatomy.layers), "hidden": anatomy.hidden, "parameters": 1, "train_length": 1}
    named = {"id": outline.lm.source.id, "origin": "made here", "architecture": anatomy.architecture}
    return ModelCard(content_hash="abc", dtype="float32", train_length_source="none", **named, **sizes)


def mixed(kind: str, formats: Sequence[str], shift: int = 0) -> Recipe:
    """The first format for half of all groups, the others in turn for the rest."""
    outline = outlined(kind)
    chosen = {
        name: formats[1 + (place // 2 + shift) % (len(formats) - 1)]
        for place, name in enumerate(outline.groups)
        if place % 2
    }
    return recipe_for(outline, card(outline), formats[0], chosen, {}, decided="by turns")


def file_of(recipe: Recipe, tool: str, folder: Path) -> Path:
    path = folder / tool_named(tool).FILE
    path.write_text(written(recipe, tool), encoding="utf-8")
    return path


def rules_of(recipe: Recipe, tool: str, folder: Path) -> RuleSet:
    """Through the file and back."""
    return rule_set(read_rules_file(file_of(recipe, tool, folder)))

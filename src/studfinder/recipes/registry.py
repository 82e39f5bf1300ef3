"""The tools that recipes are written for, and how a file is told to be one of theirs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from studfinder.errors import StudfinderError, unknown
from studfinder.recipes.matching import RuleSet
from studfinder.records import Recipe
from studfinder.records.outside import read_json, read_text

TOOLS: dict[str, str] = {
    "llm-compressor": "studfinder.recipes.llm_compressor",
    "gptqmodel": "studfinder.recipes.gptqmodel",
    "auto-round": "studfinder.recipes.auto_round",
    "torchao": "studfinder.recipes.torchao",
    "modelopt": "studfinder.recipes.model_optimizer",
    "llama.cpp": "studfinder.recipes.llama_cpp",
    "mlx": "studfinder.recipes.mlx",
    "bitsandbytes": "studfinder.recipes.bitsandbytes",
}
"""By name: the file that writes for it, and reads what it reads. A new one is a file and a line here."""


def tool_named(name: str) -> Any:
    """A tool's module: `write`, `spelled`, `owns`, `rules`, `FILE`, `USE`. Raises StudfinderError if there is none."""
    if name not in TOOLS:
        raise unknown("there is no tool", name, TOOLS)
    return import_module(TOOLS[name])


def written(recipe: Recipe, tool: str) -> str:
    """A recipe in the language of a tool, as the text of its file.

    Raises:
        StudfinderError: there is no such tool, or it has no place for a format of the recipe.
    """
    return tool_named(tool).write(recipe)


def rule_set(value: Any, tool: str | None = None, *, name: str = "this file") -> RuleSet:
    """The rules of a file's content (`read_rules_file`), of a tool or of the one whose it is.

    Raises:
        StudfinderError: it is no tool's, or what stands in it is no rule.
    """
    for one in TOOLS if tool is None else (tool,):
        module = tool_named(one)
        if module.owns(value):
            return module.rules(value)
    raise StudfinderError(f"{name} is no recipe of {tool or 'a tool that is known here'}", expected=", ".join(TOOLS))


def read_rules_file(path: Path) -> Any:
    """What a recipe's file holds: JSON, YAML or words; of a checkpoint its quantization_config.

    Args:
        path: a file, or the folder of a finished checkpoint.

    Raises:
        StudfinderError: it cannot be read, or a checkpoint is not quantised.
    """
    if path.is_dir():
        for name in ("hf_quant_config.json", "config.json"):
            if (path / name).is_file():
                return _config(read_json(path / name), path)
        raise StudfinderError(f"{path} holds no config.json", expected="a recipe's file or a checkpoint's folder")
    text = read_text(path).removeprefix("\ufeff")
    value = _parsed(text, path)
    return _config(value, path) if isinstance(value, Mapping) and "model_type" in value else value


def _config(value: Any, path: Path) -> Any:
    inner = [one for one in value.values() if isinstance(one, Mapping)]
    found = [one[key] for one in (value, *inner) for key in ("quantization_config", "quantization") if one.get(key)]
    if "quantization" in value and "quant_method" not in (value.get("quantization_config") or {}):
        return value["quantization"]
    if not found:
        raise StudfinderError(f"{path} is not quantised", expected="a config with quantization_config")
    return found[0]


def _parsed(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    import yaml

    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if "=" in text and ":" not in text.split("=")[0]:
            return text
        said = str(error).splitlines()[0][:200]
        raise StudfinderError(f"{path} is neither JSON nor YAML ({said})", expected="a recipe's file") from None
    return text if not isinstance(value, Mapping | list) else value

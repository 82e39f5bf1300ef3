"""GPTQModel: `dynamic` of its QuantizeConfig, one rule a matrix.

Matching is GPTQModel 7's (`quantization/config.py`): patterns match from the start on; those with "-:" (leave alone)
come before all others, then the first that matches. vLLM reads the same rules, for each part of a fused matrix.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from studfinder.errors import StudfinderError
from studfinder.recipes.matching import NamedMatrix, Rule, RuleSet, by_name
from studfinder.recipes.patterns import compiled
from studfinder.recipes.tool import header, no_place, of_integers, usual
from studfinder.records import UNTOUCHED, Recipe, Scheme

TOOL = "gptqmodel"
FILE = "gptqmodel.json"
USE = "QuantizeConfig(**json.load(open('gptqmodel.json')))"


def write(recipe: Recipe) -> str:
    """QuantizeConfig's keywords. Raises StudfinderError for a format that GPTQ lacks."""
    base = usual(recipe)
    dynamic: dict[str, Any] = {}
    for module, name in recipe.formats.items():
        if name != base:
            dynamic[("-:^" if name == UNTOUCHED else "+:^") + re.escape(module) + "$"] = (
                {} if name == UNTOUCHED else _settings(name)
            )
    made = {**_settings(base), "dynamic": dynamic, "meta": {"studfinder": header(recipe)}}
    return json.dumps(made, indent=1) + "\n"


def spelled(name: str) -> str:
    """A format as it comes back."""
    if name != UNTOUCHED:
        _settings(name)
    return name


def owns(value: Any) -> bool:
    """Whether a file's content is this tool's."""
    if not isinstance(value, Mapping):
        return False
    method = value.get("quant_method", "gptq")
    return method == "gptq" and "bits" in value and ("dynamic" in value or "group_size" in value)


def rules(value: Any) -> RuleSet:
    """The rules of a QuantizeConfig, or of a checkpoint's `quantization_config`."""
    dynamic = value.get("dynamic") or {}
    if not isinstance(dynamic, Mapping):
        raise StudfinderError("dynamic is no mapping", expected="settings by pattern")
    made = []
    for entry, settings in dynamic.items():
        pattern = compiled(entry.removeprefix("+:").removeprefix("-:"))
        own = {**value, **settings} if isinstance(settings, Mapping) else value
        stored = UNTOUCHED if entry.startswith("-:") else _stored(own)
        made.append(Rule(entry, stored, by_name(pattern.match)))
    made.sort(key=lambda rule: not rule.text.startswith("-:"))
    return RuleSet(TOOL, (*made, *_outside()), _stored(value))


def _outside() -> tuple[Rule, ...]:
    """What GPTQModel leaves alone by itself: all that is in no block."""

    def outside(name: str, matrix: NamedMatrix) -> bool:
        return matrix.layer is None

    return (Rule("(outside the blocks)", UNTOUCHED, outside),)


def _settings(name: str) -> dict[str, Any]:
    scheme = of_integers(name, TOOL).weights
    assert scheme is not None
    if scheme.block == "tensor" or scheme.zero == "float" or scheme.narrow or scheme.smaller_last:
        raise no_place(name, TOOL, "groups or channels with an integer zero point or none")
    size = scheme.block if isinstance(scheme.block, int) else -1
    return {"bits": scheme.bits, "group_size": size, "sym": scheme.zero == "none"}


def _stored(settings: Mapping[str, Any]) -> str:
    bits, size = settings.get("bits"), settings.get("group_size", 128)
    try:
        block: Any = "channel" if size == -1 else size
        return Scheme(element=f"int{bits}", block=block, zero="none" if settings.get("sym", True) else "integer").name  # type: ignore[arg-type]
    except StudfinderError:
        return f"{bits} bits in groups of {size}"

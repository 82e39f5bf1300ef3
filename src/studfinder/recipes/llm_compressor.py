"""llm-compressor: a recipe in YAML, with disjoint exact names; and what compressed-tensors' rules match.

Matching is compressed-tensors 0.20's (`utils/match.py`, `quantization/lifecycle/apply.py`): an entry is a module's
exact name, "re:" and a pattern that matches from the start on, or the name of a class. `ignore` wins; then exact names
before patterns before classes, and patterns among each other by their text. The order of groups decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from studfinder.errors import StudfinderError
from studfinder.recipes.matching import NamedMatrix, Rule, RuleSet
from studfinder.recipes.patterns import compiled
from studfinder.recipes.tool import comments, no_place
from studfinder.records import UNTOUCHED, Format, Recipe, format_named
from studfinder.records.compressed import input_arguments, inputs_of_arguments, scheme_of_arguments, weight_arguments

TOOL = "llm-compressor"
FILE = "llm-compressor.yaml"
USE = "oneshot(model=MODEL, recipe='llm-compressor.yaml'); with calibration data, GPTQModifier for QuantizationModifier"
_PRESETS = {
    "W4A16": "int4-g128",
    "W4A16_ASYM": "int4-g128-zero",
    "W8A16": "int8-channel",
    "W8A8": "int8-channel+int8",
    "INT8": "int8-channel+int8",
    "W4AFP8": "int4-g128+fp8",
    "FP8": "fp8-tensor+fp8-tensor",
    "FP8_DYNAMIC": "fp8+fp8",
    "FP8_BLOCK": "fp8-block+fp8-g128",
    "NVFP4A16": "nvfp4",
    "NVFP4": "nvfp4+nvfp4",
    "MXFP4A16": "mxfp4",
    "MXFP4": "mxfp4+mxfp4",
    "UNQUANTIZED": UNTOUCHED,
}


def write(recipe: Recipe) -> str:
    """The recipe for `llmcompressor.oneshot`. Raises StudfinderError for a format that compressed-tensors lacks."""
    groups: dict[str, Any] = {}
    ignore = list(recipe.left_modules)
    for name, members in recipe.by_format():
        if name == UNTOUCHED:
            ignore += members
        else:
            groups[f"group_{len(groups)}"] = {"targets": list(members), **arguments(name)}
    modifier = {"ignore": ignore, "config_groups": groups}
    made = {"quant_stage": {"quant_modifiers": {"QuantizationModifier": modifier}}}
    return comments(recipe, f"use: {USE}") + yaml.safe_dump(made, sort_keys=False, width=1000)


def arguments(name: str) -> dict[str, Any]:
    """A format as the `weights` and `input_activations` of a group of compressed-tensors."""
    format = format_named(name)
    scheme = format.weights
    if scheme is None or scheme.zero == "float" or scheme.narrow or scheme.smaller_last:
        raise no_place(name, TOOL, "no float minimum, narrow codes or smaller last block")
    made = {"weights": weight_arguments(scheme)}
    return made if format.inputs is None else {**made, "input_activations": input_arguments(format.inputs)}


def spelled(name: str) -> str:
    """A format as it comes back."""
    if name != UNTOUCHED:
        arguments(name)
    return name


def owns(value: Any) -> bool:
    """Whether a file's content is this tool's."""
    return next(_modifiers(value), None) is not None


def rules(value: Any) -> RuleSet:
    """The rules of a recipe, or of a checkpoint's `quantization_config`. Raises StudfinderError for what is none."""
    ignored: dict[str, None] = {}
    found: dict[str, str] = {}
    for modifier in _modifiers(value):
        ignored |= dict.fromkeys(_names(modifier.get("ignore")))
        if "scheme" in modifier and not modifier.get("config_groups"):
            targets = _names(modifier.get("targets", "Linear"))
            scheme = modifier["scheme"]
            given = scheme.items() if isinstance(scheme, Mapping) else [(scheme, targets)]
            for preset, names in given:
                found |= dict.fromkeys(_names(names), _PRESETS.get(str(preset), str(preset)))
        for group in _values(modifier.get("config_groups")):
            found |= dict.fromkeys(_names(group.get("targets")), _format(group))
    targets = sorted(found, key=lambda target: ("re:" in target, target))
    order = [target for target in targets if not _is_class(target)] + list(filter(_is_class, targets))
    made = [Rule(f"ignore {name}", UNTOUCHED, _test(name)) for name in ignored]
    made += [Rule(name, found[name], _test(name)) for name in order]
    return RuleSet(TOOL, tuple(made), UNTOUCHED)


def _is_class(entry: str) -> bool:
    """A module's name begins with a small letter."""
    return entry[:1].isupper() and "." not in entry


def _test(entry: str) -> Any:
    pattern = compiled(entry.removeprefix("re:")) if entry.startswith("re:") else None

    def test(name: str, matrix: NamedMatrix) -> bool:
        if pattern is not None:
            return pattern.match(name) is not None
        return name == entry or entry in matrix.kinds

    return test


def _format(group: Mapping[str, Any]) -> str:
    weights, inputs = group.get("weights"), group.get("input_activations")
    if not isinstance(weights, Mapping):
        return UNTOUCHED if weights is None and inputs is None else "inputs alone"
    try:
        scheme = scheme_of_arguments(weights)
        rounded = inputs_of_arguments(inputs) if isinstance(inputs, Mapping) else None
        return Format(weights=scheme, inputs=rounded).name
    except (StudfinderError, TypeError, ValueError):
        return f"{weights.get('num_bits')} bits, {weights.get('strategy')}"


def _modifiers(value: Any) -> Iterator[Mapping[str, Any]]:
    if not isinstance(value, Mapping):
        return
    if "config_groups" in value or ("scheme" in value and ("ignore" in value or "targets" in value)):
        yield value
        return
    for one in value.values():
        for inner in one if isinstance(one, list) else [one]:
            yield from _modifiers(inner)


def _values(groups: Any) -> list[Mapping[str, Any]]:
    if groups is not None and not isinstance(groups, Mapping):
        raise StudfinderError("config_groups is no mapping", expected="groups by name")
    return [group for group in (groups or {}).values() if isinstance(group, Mapping)]


def _names(value: Any) -> list[str]:
    names = [value] if isinstance(value, str) else value or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise StudfinderError("targets or ignore hold what is no name", expected="a list of names")
    return names

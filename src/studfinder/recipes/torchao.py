"""torchao: FqnToConfig as JSON, which `torchao.core.config.config_from_dict` reads.

Matching is torchao 0.18's (`quantization/quant_api.py`): exact names of parameters, then of modules, then patterns
("re:" and the whole name) of parameters, then of modules, each in order; then "_default". None leaves alone.
`quantize_` wants filter_fn=None with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from studfinder.errors import StudfinderError
from studfinder.recipes.matching import Rule, RuleSet, Test, by_name
from studfinder.recipes.patterns import compiled
from studfinder.recipes.tool import header, no_place
from studfinder.records import UNTOUCHED, Format, Inputs, Recipe, Scheme, format_named

TOOL = "torchao"
FILE = "torchao.json"
USE = "quantize_(model, config_from_dict(json.load(open('torchao.json'))['config']), filter_fn=None)"


def write(recipe: Recipe) -> str:
    """FqnToConfig below "config". Raises StudfinderError for a format that torchao lacks."""
    made = {module: config(name) for module, name in recipe.formats.items()}
    whole = {"_type": "FqnToConfig", "_version": 1, "_data": {"fqn_to_config": made, "module_fqn_to_config": made}}
    return json.dumps({"studfinder": header(recipe), "config": whole}, indent=1) + "\n"


def config(name: str) -> dict[str, Any] | None:
    """A format as one of torchao's configs; None for 16 bits."""
    format = format_named(name)
    scheme, inputs = format.weights, format.inputs
    if scheme is None:
        return None
    whole = {"channel": _made("PerRow", {"dim": -1}), "tensor": _made("PerTensor", {})}
    if scheme.element == "fp8" and isinstance(scheme.block, str):
        if inputs is None:
            data = {"weight_dtype": _dtype("float8_e4m3fn"), "granularity": whole[scheme.block]}
            return _made("Float8WeightOnlyConfig", data, 2)
        if inputs == Inputs(element="fp8", scope="token" if scheme.block == "channel" else "tensor"):
            both = {"granularity": [whole[scheme.block], whole[scheme.block]]}
            return _made("Float8DynamicActivationFloat8WeightConfig", both, 2)
    if scheme == Scheme(element="int8", block="channel") and inputs == Inputs(element="int8"):
        data = {"granularity": whole["channel"], "act_mapping_type": _enum("MappingType", "SYMMETRIC")}
        return _made("Int8DynamicActivationInt8WeightConfig", data, 2)
    grouped = isinstance(scheme.block, int) or scheme.block == "channel"
    if not (scheme.integer and grouped and inputs is None) or scheme.zero == "float" or scheme.narrow:
        raise no_place(name, TOOL, "integers by group or channel, fp8, fp8+fp8 or int8-channel+int8")
    if scheme.smaller_last:
        raise no_place(name, TOOL, "no smaller last block")
    by = (
        _made("PerGroup", {"group_size": scheme.block})
        if isinstance(scheme.block, int)
        else _made("PerAxis", {"axis": 0})
    )
    data = {
        "weight_dtype": _dtype(f"int{scheme.bits}"),
        "granularity": by,
        "mapping_type": _enum("MappingType", "SYMMETRIC" if scheme.zero == "none" else "ASYMMETRIC"),
    }
    return _made("IntxWeightOnlyConfig", data, 2)


def spelled(name: str) -> str:
    """A format as it comes back."""
    config(name)
    return name


def owns(value: Any) -> bool:
    """Whether a file's content is this tool's."""
    return _configs(value) is not None


def rules(value: Any) -> RuleSet:
    """The rules of an FqnToConfig, or of a checkpoint's `quantization_config`."""
    found = _configs(value)
    if found is None:
        raise StudfinderError("there is no fqn_to_config", expected="an FqnToConfig")
    order: list[list[Rule]] = [[], [], [], [], []]
    for key, said in found.items():
        stored = _stored(said)
        if key == "_default":
            order[4].append(Rule(key, stored, lambda name, matrix: "Linear" in matrix.kinds))
        elif key.startswith("re:"):
            pattern = compiled(key[3:])
            order[2].append(Rule(key, stored, _weight(pattern)))
            order[3].append(Rule(key, stored, by_name(pattern.fullmatch)))
        elif key.endswith(".weight"):
            order[0].append(Rule(key, stored, by_name(key.removesuffix(".weight").__eq__)))
        else:
            order[1].append(Rule(key, stored, by_name(key.__eq__)))
    return RuleSet(TOOL, tuple(rule for some in order for rule in some), UNTOUCHED, vllm=False)


def _weight(pattern: re.Pattern[str]) -> Test:
    return by_name(lambda name: pattern.fullmatch(f"{name}.weight"))


def _configs(value: Any) -> Mapping[str, Any] | None:
    """The configs by name, however deep they are wrapped; None where there are none."""
    for _ in range(6):
        if not isinstance(value, Mapping):
            return None
        if isinstance(value.get("fqn_to_config", value.get("module_fqn_to_config")), Mapping):
            return value.get("fqn_to_config", value.get("module_fqn_to_config"))
        value = next((value[name] for name in ("config", "quant_type", "default", "_data") if name in value), None)
    return None


def _made(kind: str, data: dict[str, Any], version: int = 1) -> dict[str, Any]:
    return {"_type": kind, "_version": version, "_data": data}


def _enum(kind: str, value: str) -> dict[str, Any]:
    return {"_type": kind, "_data": value}


def _dtype(name: str) -> dict[str, Any]:
    return {"_type": "torch.dtype", "_data": name}


def _stored(said: Any) -> str:
    if said is None:
        return UNTOUCHED
    try:
        kind, data = said["_type"], said["_data"]
        by = data.get("granularity")
        first = by[0] if isinstance(by, list) else by
        block: Any = {"PerRow": "channel", "PerAxis": "channel", "PerTensor": "tensor"}.get(
            str((first or {}).get("_type"))
        )
        if kind == "Float8WeightOnlyConfig":
            return Format(weights=Scheme(element="fp8", block=block or "channel")).name
        if kind == "Float8DynamicActivationFloat8WeightConfig":
            inputs = Inputs(element="fp8", scope="tensor" if block == "tensor" else "token")
            return Format(weights=Scheme(element="fp8", block=block or "channel"), inputs=inputs).name
        if kind == "Int8DynamicActivationInt8WeightConfig":
            return "int8-channel+int8"
        if kind == "Int8WeightOnlyConfig":
            return "int8-channel"
        if kind == "IntxWeightOnlyConfig":
            zero: Any = "none" if data["mapping_type"]["_data"] != "ASYMMETRIC" else "integer"
            size: Any = first["_data"].get("group_size") if first["_type"] == "PerGroup" else "channel"
            return Scheme(element=data["weight_dtype"]["_data"], block=size, zero=zero).name
        return str(kind)
    except (StudfinderError, KeyError, TypeError, AttributeError):
        return str(said)[:60]

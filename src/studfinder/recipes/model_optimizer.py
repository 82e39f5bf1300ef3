"""NVIDIA Model Optimizer: the ordered `quant_cfg` list of a recipe; and what it and `exclude_modules` match.

Matching is ModelOpt 0.47's (`torch/quantization/conversion.py`): globs over the names of quantisers, which are the
module's and ".weight_quantizer" or ".input_quantizer"; later entries win, and one without `cfg` only turns on or off.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from functools import partial
from typing import Any

import yaml

from studfinder.errors import StudfinderError
from studfinder.recipes.matching import NamedMatrix, Rule, RuleSet, Test, by_name
from studfinder.recipes.tool import comments, no_place
from studfinder.records import UNTOUCHED, Format, Inputs, Recipe, Scheme, format_named

TOOL = "modelopt"
FILE = "modelopt.yaml"
USE = "hf_ptq.py --recipe modelopt.yaml, or mtq.quantize(model, yaml.safe_load(open('modelopt.yaml'))['quantize'])"
_ALGORITHMS = {
    "FP8": "fp8-tensor+fp8-tensor",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8+fp8",
    "FP8_PB_WO": "fp8-block",
    "NVFP4": "nvfp4+nvfp4",
    "W4A16_NVFP4": "nvfp4",
    "MXFP4": "mxfp4",
    "W8A16": "int8-channel",
    "W8A8_SQ_PER_CHANNEL": "int8-channel+int8",
}


def write(recipe: Recipe) -> str:
    """A PTQ recipe. Raises StudfinderError for a format that ModelOpt lacks."""
    entries: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    left = list(recipe.left_modules)
    for group in recipe.groups:
        weights, inputs = attributes(group.stored_as)
        left += group.members if weights is None else ()
        for member in group.members if weights is not None else ():
            entries.append({"quantizer_name": f"{member}.weight_quantizer", "cfg": weights})
            if inputs is not None:
                entries.append({"quantizer_name": f"{member}.input_quantizer", "cfg": inputs})
    made = {
        "metadata": {"recipe_type": "ptq", "description": recipe.decided},
        "quantize": {"algorithm": "max", "quant_cfg": entries},
    }
    excluded = f"exclude_modules: {', '.join(left)}"
    return comments(recipe, f"use: {USE}", excluded) + yaml.safe_dump(made, sort_keys=False, width=1000)


def attributes(name: str) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """A format as the settings of the weights' quantiser and of the inputs'; None where it is off."""
    format = format_named(name)
    scheme, inputs = format.weights, format.inputs
    if scheme is None:
        return None, None
    plain = scheme.zero == "none" and not scheme.narrow
    if not plain or scheme.smaller_last:
        raise no_place(name, TOOL, "symmetric codes")
    bits: Any = scheme.bits if scheme.integer else {"fp8": "e4m3", "fp4": "e2m1"}[scheme.element]
    made: dict[str, Any] = {"num_bits": bits}
    if scheme.element == "fp4":
        made["block_sizes"] = {-1: scheme.block, "type": "dynamic", "scale_bits": scheme.scale}
    elif isinstance(scheme.block, tuple):
        made["block_sizes"] = {-1: scheme.block[1], -2: scheme.block[0]}
    elif isinstance(scheme.block, int):
        made["block_sizes"] = {-1: scheme.block}
    else:
        made["axis"] = 0 if scheme.block == "channel" else None
    return made, None if inputs is None else _input_attributes(inputs)


def _input_attributes(inputs: Inputs) -> dict[str, Any]:
    if inputs.element == "fp4":
        scale = "e4m3" if inputs.scope == 16 else "e8m0"
        return {"num_bits": "e2m1", "block_sizes": {-1: inputs.scope, "type": "dynamic", "scale_bits": scale}}
    bits: Any = "e4m3" if inputs.element == "fp8" else int(inputs.element[3:])
    if inputs.scope == "tensor":
        return {"num_bits": bits, "type": "dynamic", "axis": None}
    return {"num_bits": bits, "type": "dynamic", "block_sizes": {-1: None if inputs.scope == "token" else inputs.scope}}


def spelled(name: str) -> str:
    """A format as it comes back."""
    attributes(name)
    return name


def owns(value: Any) -> bool:
    """Whether a file's content is this tool's."""
    if not isinstance(value, Mapping):
        return False
    inner = value.get("quantize", value.get("quantization", value))
    return isinstance(inner, Mapping) and ("quant_cfg" in inner or "quant_algo" in inner or "exclude_modules" in inner)


def rules(value: Any) -> RuleSet:
    """The rules of a recipe, or of a checkpoint's hf_quant_config.json."""
    value = value.get("quantize", value.get("quantization", value))
    if "quant_cfg" not in value:
        return _exported(value)
    entries = value["quant_cfg"]
    if not isinstance(entries, list) or not all(
        isinstance(one, Mapping) and "quantizer_name" in one for one in entries
    ):
        raise StudfinderError("quant_cfg is no list of entries", expected="quantizer_name with cfg or enable")
    made: list[Rule] = []
    for entry in reversed(entries):
        if entry.get("enable", True) and entry.get("cfg") is None:
            continue  # it turns on what an earlier one described
        glob = str(entry["quantizer_name"])
        on = entry.get("enable", True)
        for about, suffix in (("weights", "weight_quantizer"), ("inputs", "input_quantizer")):
            if not _can_mean(glob, suffix):
                continue
            stored = (_weights(entry["cfg"]) if about == "weights" else _inputs(entry["cfg"])) if on else UNTOUCHED
            made.append(Rule(glob, stored, _quantizer(glob, suffix), about))  # type: ignore[arg-type]
    return RuleSet(TOOL, tuple(made), UNTOUCHED, vllm=False)


def _quantizer(glob: str, suffix: str) -> Test:
    return by_name(lambda name: fnmatch(f"{name}.{suffix}", glob))


def _can_mean(glob: str, suffix: str) -> bool:
    return glob.endswith(("*", suffix)) or fnmatch(suffix, glob.rpartition(".")[2])


def _exported(value: Mapping[str, Any]) -> RuleSet:
    excluded = value.get("exclude_modules", value.get("ignore")) or []
    if not isinstance(excluded, list) or not all(isinstance(one, str) for one in excluded):
        raise StudfinderError("exclude_modules is no list of names", expected="a list of names")
    made = [Rule(glob, UNTOUCHED, by_name(partial(fnmatch, pat=glob))) for glob in excluded]
    layers = value.get("quantized_layers") or {}
    for module, said in layers.items() if isinstance(layers, Mapping) else ():
        algorithm = str(said.get("quant_algo") if isinstance(said, Mapping) else said)
        stored = _ALGORITHMS.get(algorithm, algorithm)
        made.append(Rule(module, stored, by_name(module.__eq__)))
    whole = str(value.get("quant_algo"))
    default = UNTOUCHED if whole in ("None", "MIXED_PRECISION") else _ALGORITHMS.get(whole, whole)
    return RuleSet(TOOL, (*made, Rule("(no Linear)", UNTOUCHED, _no_linear)), default)


def _no_linear(name: str, matrix: NamedMatrix) -> bool:
    return "Linear" not in matrix.kinds


def _element(bits: Any) -> str:
    known = {"e4m3": "fp8", "(4, 3)": "fp8", "[4, 3]": "fp8", "e2m1": "fp4", "(2, 1)": "fp4", "[2, 1]": "fp4"}
    return known.get(str(bits), f"int{bits}")


def _weights(cfg: Any) -> str:
    try:
        sizes = {str(key): size for key, size in (cfg.get("block_sizes") or {}).items()}
        changes: dict[str, Any] = {}
        block: Any = "channel" if cfg.get("axis") == 0 else "tensor"
        if "-2" in sizes:
            block, changes["remainder"] = (sizes["-2"], sizes["-1"]), "block"
        elif "-1" in sizes:
            block = sizes["-1"]
        element: Any = _element(cfg.get("num_bits"))
        if element == "fp4":
            scale = str(sizes.get("scale_bits"))
            changes["scale"] = "e8m0" if scale in ("e8m0", "(8, 0)", "[8, 0]") else "e4m3"
        return Format(weights=Scheme(element=element, block=block, **changes)).name
    except (StudfinderError, AttributeError, TypeError):
        return str(cfg)[:60]


def _inputs(cfg: Any) -> str:
    try:
        sizes = {str(key): size for key, size in (cfg.get("block_sizes") or {}).items()}
        scope: Any = "tensor" if "-1" not in sizes else sizes["-1"] or "token"
        element: Any = _element(cfg.get("num_bits"))
        return Inputs(element=element, scope=scope).name
    except (StudfinderError, AttributeError, TypeError):
        return str(cfg)[:60]

"""AutoRound: `layer_config`, exact names, with the scheme of all other layers beside it.

Matching is AutoRound 0.16's (`compressors/layer_config_resolver.py`): a key that is the name of a layer is that layer.
Any other key is searched for in the names, where one without signs of a pattern is a part of a name. What is found so
overwrites what keys before it said, exact names too. With integers, sizes that 32 does not divide stay whole. A
finished checkpoint has the same as `extra_config`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from studfinder.errors import StudfinderError
from studfinder.recipes.matching import NamedMatrix, Rule, RuleSet, by_name
from studfinder.recipes.patterns import compiled
from studfinder.recipes.tool import header, no_place, usual
from studfinder.records import UNTOUCHED, Format, Inputs, Recipe, Scheme, format_named

TOOL = "auto-round"
FILE = "auto-round.json"
USE = "AutoRound(MODEL, scheme=r['scheme'], layer_config=r['layer_config']) with r = json.load(open('auto-round.json'))"
_SIGNS = (".*", "^", "$", "|", "(", ")", "[", "]", "?", "+")
_LEFT = {"bits": 16, "data_type": "fp", "act_bits": 16}


def write(recipe: Recipe) -> str:
    """AutoRound's keywords. Raises StudfinderError for a format that it lacks."""
    base = usual(recipe)
    config = {module: _settings(name) for module, name in recipe.formats.items() if name != base}
    made = {"studfinder": header(recipe), "scheme": _settings(base), "layer_config": config}
    return json.dumps(made, indent=1) + "\n"


def _settings(name: str) -> dict[str, Any]:
    """A format as the fields of AutoRound's QuantizationScheme."""
    format = format_named(name)
    scheme, inputs = format.weights, format.inputs
    if scheme is None:
        return dict(_LEFT)
    if scheme.zero == "float" or scheme.narrow or scheme.smaller_last:
        raise no_place(name, TOOL, "no float minimum, narrow codes or smaller last block")
    if scheme.integer and scheme.bits == 8 and scheme.zero != "none":
        raise no_place(name, TOOL, "8 bits without a zero point (it refuses others)")
    kind = {"e4m3": "nv_fp", "e8m0": "mx_fp"}.get(scheme.scale, "fp") if not scheme.integer else "int"
    made: dict[str, Any] = {
        "bits": scheme.bits,
        "group_size": _size(scheme.block),
        "sym": scheme.zero == "none",
        "data_type": kind,
    }
    if inputs is None:
        return {**made, "act_bits": 16}
    element = inputs.element
    made["act_bits"] = int(element.removeprefix("int").removeprefix("fp"))
    fp4 = {16: "nv_fp", 32: "mx_fp"}
    made["act_data_type"] = "int" if element.startswith("int") else "fp" if element == "fp8" else fp4[inputs.scope]  # type: ignore[index]
    made["act_group_size"] = inputs.scope if isinstance(inputs.scope, int) else -1 if inputs.scope == "token" else 0
    return {**made, "act_sym": True, "act_dynamic": True}


def spelled(name: str) -> str:
    """A format as it comes back."""
    _settings(name)
    return name


def owns(value: Any) -> bool:
    """Whether a file's content is this tool's."""
    return isinstance(value, Mapping) and ("layer_config" in value or "extra_config" in value or _method(value))


def rules(value: Any) -> RuleSet:
    """The rules of a layer_config, or of a checkpoint's `quantization_config`."""
    base = value.get("scheme", value)
    given = value.get("layer_config", value.get("extra_config")) or {}
    if not isinstance(given, Mapping):
        raise StudfinderError("layer_config is no mapping", expected="settings by name")
    exact: list[Rule] = []
    searched: list[Rule] = []
    for key, said in given.items():
        if _named(key):
            exact.append(Rule(key, _stored(said, base), by_name(key.__eq__)))
        searched.append(Rule(key, _stored(said, base), by_name(partial(_found, key, compiled(_standard(key))))))
    ignored = str(value.get("ignore_layers") or "").replace(" ", "")
    for key in filter(None, ignored.split(",")):
        part = f"{key}." if key[-1].isdigit() else key
        searched.append(Rule(f"ignore {key}", UNTOUCHED, by_name(compiled(re.escape(part)).search)))
    return RuleSet(TOOL, (*_odd(base), *reversed(searched), *exact, *_outside()), _stored(base, {}))


def _odd(base: Any) -> tuple[Rule, ...]:
    """What AutoRound leaves alone whatever is said: with integers, sizes that 32 does not divide."""

    def odd(name: str, matrix: NamedMatrix) -> bool:
        return matrix.shape is not None and any(size % 32 for size in matrix.shape)

    plain = isinstance(base, Mapping) and base.get("data_type", "int") == "int" and (base.get("act_bits") or 16) >= 16
    return (Rule("(sizes that 32 does not divide)", UNTOUCHED, odd),) if plain else ()


def _outside() -> tuple[Rule, ...]:
    def outside(name: str, matrix: NamedMatrix) -> bool:
        return matrix.layer is None or "Linear" not in matrix.kinds

    return (Rule("(outside the blocks)", UNTOUCHED, outside),)


def _method(value: Mapping[str, Any]) -> bool:
    return str(value.get("quant_method", "")).replace("_", "-") in ("auto-round", "intel/auto-round")


def _named(key: str) -> bool:
    """Whether a key is the whole name of a layer in a block, or of the head."""
    return not any(sign in key for sign in _SIGNS) and (
        key == "lm_head" or bool(re.search(r"\.\d+\..*[a-z_]\w*$", key))
    )


def _found(key: str, pattern: re.Pattern[str], name: str) -> bool:
    """Whether a key is found in a name that it is not itself. One that could be another layer's whole name, as
    ...mlp.gate beside ...mlp.gate_proj, is taken for that."""
    if _named(key) and (name == key or (name.startswith(key) and name[len(key)] != ".")):
        return False
    return pattern.search(name) is not None


def _standard(key: str) -> str:
    if not any(sign in key for sign in _SIGNS):
        return f".*{re.escape(key)}.*"
    made = re.sub(r"\.(?!\*)", r"\\.", key)
    made = made if made.startswith(("^", ".*")) else ".*" + made
    return made if made.endswith(("$", ".*")) else made + ".*"


def _size(block: Any) -> Any:
    return list(block) if isinstance(block, tuple) else {"channel": -1, "tensor": 0}.get(block, block)


def _block(size: Any) -> Any:
    return tuple(size) if isinstance(size, list) else {-1: "channel", 0: "tensor"}.get(size, size)


def _stored(said: Any, base: Any) -> str:
    if not isinstance(said, Mapping):
        return {"BF16": UNTOUCHED, "FP16": UNTOUCHED}.get(str(said), str(said))
    own = {**(base if isinstance(base, Mapping) else {}), **said}
    bits, kind = own.get("bits", 4), str(own.get("data_type", "int"))
    if bits == 16:
        return UNTOUCHED
    try:
        block, changes = _block(own.get("group_size", 128)), {}
        if kind != "int":
            changes = {"scale": {"nv_fp": "e4m3", "mx_fp": "e8m0"}.get(kind[:5], "bfloat16")}
        if isinstance(block, tuple):
            changes["remainder"] = "block"
        element: Any = f"{'int' if kind == 'int' else 'fp'}{bits}"
        zero: Any = "none" if own.get("sym", True) else "integer"
        inputs = None
        if own.get("act_bits") not in (None, 16, 32):
            act = "int" if own.get("act_data_type", "int") == "int" else "fp"
            size = own.get("act_group_size", -1)
            scope: Any = {-1: "token", 0: "tensor"}.get(size, size)
            inputs = Inputs(element=f"{act}{own['act_bits']}", scope=scope)  # type: ignore[arg-type]
        return Format(weights=Scheme(element=element, block=block, zero=zero, **changes), inputs=inputs).name  # type: ignore[arg-type]
    except (StudfinderError, TypeError):
        return f"{bits} bits {kind} in groups of {own.get('group_size')}"

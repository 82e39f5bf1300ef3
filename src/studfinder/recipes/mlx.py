"""mlx-lm: the `quantization` of a config.json, by exact module path.

Matching is mlx-lm 0.32's (`utils.py`, load_model), as documented; it was not run: a path with a mapping has those bits,
with false stays as it is, and any other Linear or Embedding has the whole's. Its affine mode has a float minimum for
each group, whatever zero point a recipe has for integers. Experts are one module, `switch_mlp`, for all of a layer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from studfinder.errors import StudfinderError
from studfinder.recipes.matching import NamedMatrix, Rule, RuleSet, by_name
from studfinder.recipes.tool import header, no_place, usual
from studfinder.records import UNTOUCHED, Recipe, Scheme, Sensitivity, format_named

TOOL = "mlx"
FILE = "mlx.json"
SENSITIVITIES = "mlx-sensitivities.json"
USE = "convert(MODEL, quantize=True, quant_predicate=lambda path, module: r.get(path, True)), r its quantization"
_MODES = {"mxfp4": 32, "nvfp4": 16}
_EXPERT = re.compile(r"\.experts\.\d+\.")
_LEAVES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def write(recipe: Recipe) -> str:
    """What goes into config.json as "quantization". Raises StudfinderError for a format that mlx lacks."""
    base = usual(recipe)
    said: dict[str, Any] = dict(_settings(base))
    for module, name in recipe.formats.items():
        if spelled(name) != spelled(base):
            said[_path(module)] = False if name == UNTOUCHED else _settings(name)
    return json.dumps({"studfinder": header(recipe), "quantization": said}, indent=1) + "\n"


def mlx_sensitivities(costs: Sensitivity, formats: Collection[str]) -> str:
    """What `mlx_lm.dynamic_quant --sensitivities` reads: a pair (module, score) for every matrix, the dearest first.

    Its own score is how much a loss falls, to first order, from the low to the high format for every million numbers.
    Here it is by how much the KL does, in nats per token, from the group's smallest of some formats to its largest.
    What is fused has one score; 0 where none of them fits.
    """
    found = []
    for group in costs.groups:
        own = sorted((one for one in group.costs if one.stored_as in formats), key=lambda one: one.bits)
        rounded = [one for one in own if one.stored_as != UNTOUCHED]
        less = rounded[0].nats - rounded[-1].nats if rounded else 0.0
        found += [(_path(module), less / (group.weights / 1e6)) for module in group.modules]
    return json.dumps(sorted(found, key=lambda pair: -pair[1]), indent=1) + "\n"


def _settings(name: str) -> dict[str, Any]:
    """A format as mlx's group_size, bits and mode."""
    format = format_named(name)
    scheme = format.weights
    if scheme is not None and format.inputs is None:
        if name in _MODES:
            return {"group_size": _MODES[name], "bits": 4, "mode": name}
        if scheme.integer and isinstance(scheme.block, int) and scheme.bits != 7:
            return {"group_size": scheme.block, "bits": scheme.bits, "mode": "affine"}
    raise no_place(name, TOOL, "integers by group, mxfp4 or nvfp4")


def spelled(name: str) -> str:
    """What becomes of a format: integers have a float minimum."""
    return name if name == UNTOUCHED else _stored(_settings(name))


def owns(value: Any) -> bool:
    """Whether a file's content is this tool's."""
    value = value.get("quantization", value) if isinstance(value, Mapping) else value
    return isinstance(value, Mapping) and "bits" in value and "group_size" in value and "quant_method" not in value


def rules(value: Any) -> RuleSet:
    """The rules of a `quantization`."""
    value = value.get("quantization", value)
    made = []
    for path, said in value.items():
        if isinstance(said, Mapping) or said is False:
            stored = UNTOUCHED if said is False else _stored({**value, **said})
            made.append(Rule(path, stored, by_name(partial(_same, path))))
    if not isinstance(value.get("bits"), int) or not isinstance(value.get("group_size"), int):
        raise StudfinderError("quantization has no bits or no group_size", expected="whole numbers")
    return RuleSet(TOOL, (*made, Rule("(no Linear or Embedding)", UNTOUCHED, _neither)), _stored(value), vllm=False)


def _same(path: str, name: str) -> bool:
    return _path(name) == path


def _neither(name: str, matrix: NamedMatrix) -> bool:
    return not {"Linear", "Embedding"} & set(matrix.kinds)


def _path(module: str) -> str:
    if _EXPERT.search(module) is None:
        return module
    head, _, leaf = _EXPERT.sub(".switch_mlp.", module).rpartition(".")
    return f"{head}.{_LEAVES.get(leaf, leaf)}"


def _stored(said: Mapping[str, Any]) -> str:
    mode = str(said.get("mode", "affine"))
    if mode in _MODES:
        return mode
    try:
        return Scheme(element=f"int{said.get('bits')}", block=said.get("group_size"), zero="float").name  # type: ignore[arg-type]
    except (StudfinderError, TypeError):
        return f"{said.get('bits')} bits {mode}"

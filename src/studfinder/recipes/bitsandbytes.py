"""bitsandbytes through transformers: the list of modules that are skipped, the head always among them.

Matching is transformers' (`quantizers/quantizers_utils.py`, should_convert_module), which other quantisers of its use
for `modules_to_not_convert`: a name is skipped if an entry, as a pattern, matches its beginning up to a dot or the end,
or stands at its end. A list that is given replaces the usual one, which holds the head.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from studfinder.errors import StudfinderError
from studfinder.recipes.matching import NamedMatrix, Rule, RuleSet
from studfinder.recipes.patterns import compiled
from studfinder.recipes.tool import header, no_place, usual
from studfinder.records import UNTOUCHED, Recipe, format_named

TOOL = "bitsandbytes"
FILE = "bitsandbytes.json"
USE = "BitsAndBytesConfig(**json.load(open('bitsandbytes.json'))['config'])"
_FORMATS = {4: "nf4", 8: "llm.int8"}
_EXPERT = re.compile(r"\.experts\.\d+\.")
_SKIPS = ("llm_int8_skip_modules", "modules_to_not_convert")


def write(recipe: Recipe) -> str:
    """BitsAndBytesConfig's keywords, below "config".

    Raises:
        StudfinderError: the recipe has more than one format beside 16 bits, or one of other bits than 4 and 8.
    """
    base = spelled(usual(recipe))
    more = sorted({name for name, _ in recipe.by_format() if name != UNTOUCHED and spelled(name) != base})
    if more:
        raise StudfinderError(f"bitsandbytes has one format for all, and the recipe has {more[0]} too")
    skipped = list(dict.fromkeys(_skipped(recipe)))
    config = {"load_in_4bit": base == "nf4", "load_in_8bit": base != "nf4"}
    if base == "nf4":
        config["bnb_4bit_quant_type"] = "nf4"  # type: ignore[assignment]
    made = {"studfinder": header(recipe), "config": {**config, "llm_int8_skip_modules": skipped}}
    return json.dumps(made, indent=1) + "\n"


def _skipped(recipe: Recipe) -> list[str]:
    skipped = ["lm_head", *recipe.left_modules]
    for group in recipe.groups:
        if group.stored_as == UNTOUCHED:
            # transformers has all experts of a layer in one module, whose name is the group's
            skipped += [group.name] if _EXPERT.search(group.members[0]) else group.members
    return skipped


def spelled(name: str) -> str:
    """What becomes of a format: nf4 or llm.int8."""
    format = format_named(name)
    if format.weights is None:
        return UNTOUCHED
    if format.weights.bits not in _FORMATS:
        raise no_place(name, TOOL, "4 or 8 bits")
    return _FORMATS[format.weights.bits]


def owns(value: Any) -> bool:
    """Whether a file's content is this tool's."""
    value = value.get("config", value) if isinstance(value, Mapping) else value
    return isinstance(value, Mapping) and any(name in value for name in (*_SKIPS, "load_in_4bit", "load_in_8bit"))


def rules(value: Any) -> RuleSet:
    """The rules of a config, or of a checkpoint's `quantization_config`."""
    value = value.get("config", value)
    entries: Any = next((value[name] for name in _SKIPS if value.get(name) is not None), [])
    if not isinstance(entries, list) or not all(isinstance(one, str) for one in entries):
        raise StudfinderError("the modules to skip are no list of names", expected="a list of names")
    default = str(value.get("quant_method", "")) or "nf4"
    if default in ("nf4", "bitsandbytes"):
        default = "llm.int8" if value.get("load_in_8bit") or value.get("_load_in_8bit") else "nf4"
    made = [Rule(entry, UNTOUCHED, _test(entry)) for entry in entries]
    return RuleSet(TOOL, (*made, Rule("(embeddings)", UNTOUCHED, _embedding)), default, vllm=False)


def _embedding(name: str, matrix: NamedMatrix) -> bool:
    return "Linear" not in matrix.kinds


def _test(entry: str) -> Any:
    pattern = compiled(rf"(?:{entry})(?:(?<=\.)|(?=\.|$))")
    return lambda name, matrix: pattern.match(name) is not None or name.endswith(entry)

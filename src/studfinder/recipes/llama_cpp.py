"""llama.cpp: a file for `llama-quantize --tensor-type-file`, one rule a tensor.

Matching is llama.cpp's (`tools/quantize`, `src/llama-quant.cpp`): patterns are searched for in the GGUF names, the
parser makes them lower case, the first that matches decides, and only for tensors that the type of the whole would
quantise. The file takes no comments, so that the header is a rule for a name that no tensor has.
"""

from __future__ import annotations

import re
from typing import Any

from studfinder.errors import StudfinderError
from studfinder.recipes.gguf_names import gguf_names
from studfinder.recipes.matching import Rule, RuleSet, by_name
from studfinder.recipes.patterns import compiled
from studfinder.recipes.tool import header, usual
from studfinder.records import UNTOUCHED, Recipe, format_named

TOOL = "llama.cpp"
FILE = "llama.cpp.txt"
USE = "llama-quantize --tensor-type-file llama.cpp.txt model-bf16.gguf out.gguf TYPE"
_WHOLE = {"q4_k": "Q4_K_M", "q5_k": "Q5_K_M", "q3_k": "Q3_K_M", "mxfp4": "MXFP4_MOE"}
_BY_BITS = {2: "q2_k", 3: "q3_k", 4: "q4_k", 5: "q5_k", 6: "q6_k", 7: "q8_0", 8: "q8_0"}
_EXACT = {
    "int4-g32": "q4_0",
    "int4-g32-float": "q4_1",
    "int5-g32": "q5_0",
    "int5-g32-float": "q5_1",
    "int8-g32": "q8_0",
    "mxfp4": "mxfp4",
    "nvfp4": "nvfp4",
    UNTOUCHED: "bf16",
}
_HEADER = "^#"


def write(recipe: Recipe) -> str:
    """The rules of all that differs from the type that most matrices have.

    Raises:
        StudfinderError: a matrix that has no name in GGUF.
    """
    base = spelled(usual(recipe))
    names = gguf_names(recipe.model.architecture, recipe.model.layers, recipe.formats)
    lines = [f"{_HEADER}{_word(f'{name}={value}')}$={spelled(UNTOUCHED)}" for name, value in header(recipe).items()]
    lines.append(f"{_HEADER}type-of-the-whole:{_WHOLE.get(base, base).lower()}$={base}")
    rules: dict[str, str] = {}
    for group in recipe.groups:
        kind = spelled(group.stored_as)
        for member in group.members if kind != base else ():
            if not names[member]:
                raise StudfinderError(f"{member} has no name in GGUF for {recipe.model.architecture}")
            rules[f"^{re.escape(names[member])}$"] = kind  # all experts of a layer are one tensor
    return "\n".join([*lines, *(f"{pattern}={kind}" for pattern, kind in rules.items())]) + "\n"


def spelled(name: str) -> str:
    """The type that comes closest to a format: the same bits."""
    format = format_named(name)
    scheme = format.weights
    return _EXACT.get(name) or _BY_BITS[8 if scheme is None else scheme.bits]


def owns(value: Any) -> bool:
    """Whether a file's content is this tool's."""
    words = value.split() if isinstance(value, str) else []
    return bool(words) and all("=" in word[1:] for word in words)


def rules(value: Any) -> RuleSet:
    """The rules of a file. Raises StudfinderError for what llama-quantize could not read."""
    made, default = [], "the type of the whole"
    for word in str(value).split():
        pattern, _, kind = word.partition("=")
        if not pattern or not re.fullmatch(r"[a-z0-9_]+", kind, re.IGNORECASE):
            raise StudfinderError(f"{word[:80]!r} is no rule", expected="PATTERN=TYPE")
        if pattern.startswith(_HEADER):
            default = kind if pattern.startswith(f"{_HEADER}type-of-the-whole") else default
            continue
        found = compiled(pattern.lower())
        made.append(Rule(word, kind.lower(), by_name(found.search)))
    return RuleSet(TOOL, tuple(made), default, gguf=True)


def _word(text: str) -> str:
    """A text as one word without = and without signs that a pattern has."""
    return re.sub(r"[^a-z0-9.:_/,-]+", "_", text.lower().replace("=", ":", 1))[:200]

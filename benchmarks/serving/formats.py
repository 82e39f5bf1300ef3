"""Every format that `studfinder quantize` writes, in every engine: does it load there, and does it mean the same?

    python benchmarks/serving/formats.py [small|smollm2 ...]

Formats that 128 has to divide are tried on the small random model, whose sizes it does divide.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from environments import BUILD, llama_version
from in_llama_cpp import measured, to_gguf
from kept import in_transformers, in_vllm, keep, made, original, record, say

import studfinder as sf
from studfinder.errors import StudfinderError
from studfinder.models import content_hash
from studfinder.models.card import model_card
from studfinder.quantizers import SCHEMES
from studfinder.records import Recipe
from studfinder.verbs.configs import RecipeConfig
from studfinder.verbs.recipe import recipe_for
from studfinder.verbs.recipe_outline import outline_of

INPUTS = (
    "fp8+fp8",
    "int8-channel+int8",
    "fp8-tensor+fp8-tensor",
    "int8-tensor-narrow+int8",
    "int4-g64+int8",
    "int4-g64+fp8",
)
OTHERS = (
    "int4-g64",
    "int4-g32",
    "int4-g32-zero",
    "int4-g128",
    "int4-channel",
    "int8-g64",
    "int8-g64-zero",
    "int8-channel-zero",
    "fp8-tensor",
    "int2-g64",
)
FORMATS = (*SCHEMES, *OTHERS, *INPUTS)
MIXED = {"mixed int4-g64 and 16": ("int4-g64", "16"), "mixed int4-g64 and fp8+fp8": ("int4-g64", "fp8+fp8")}
"""By a plan: what most matrices have, and the second layer's down projection."""
ON_SMOLLM2 = (
    "w4-g64",
    "int4-g64",
    "w4-channel",
    "w8-channel",
    "fp8",
    "nvfp4",
    "fp8+fp8",
    "int8-channel+int8",
    "mixed int4-g64 and 16",
)
BFLOAT16 = ("original", "int4-g64", "fp8+fp8", "int8-channel+int8", "mixed int4-g64 and 16")
"""What is run in vLLM's usual dtype too, of the small model."""


def export(model: str, format: str) -> Path | None:
    """A checkpoint in this format, by our command; None where it refuses, with a record that says why."""
    if format == "original":
        return original(model)
    folder = BUILD / "exports" / model / format.replace(" ", "-")
    if folder.exists():
        return folder
    if (refused := record("export", model, format)) and "error" in refused:
        return None
    how: dict[str, Any] = {"plan": plan(model, format)} if format in MIXED else {"scheme": format}
    try:
        with made(folder) as partial:
            sf.quantize(str(original(model)), **how, clip=False, verify=False, out=partial)
    except StudfinderError as error:
        keep({"error": str(error)}, "export", model, format)
        return None
    return folder


def plan(model: str, format: str) -> Recipe:
    """A recipe with two formats: the second layer's down projection has the other one."""
    usual, other = MIXED[format]
    lm = sf.load(str(original(model)))
    outline = outline_of(lm, RecipeConfig())
    apart = next(name for name in outline.groups if "layers.1." in name and "down_proj" in name)
    card = model_card(lm, content_hash(lm))
    return recipe_for(outline, card, usual, {apart: other}, {apart: "as an example"}, decided="by hand")


def run(model: str, formats: Sequence[str]) -> None:
    """Make what is missing, and ask every engine about it."""
    found = {format: folder for format in ("original", *formats) if (folder := export(model, format)) is not None}
    say(f"{model}: {len(found)} checkpoints")
    in_transformers([(model, folder, ("transformers", model, format)) for format, folder in found.items()])
    if model != "small":  # whose vocabulary is not its tokenizer's, which the converter refuses
        _by_llama_cpp(model, found)
    in_vllm([(model, folder, ("vllm", model, format)) for format, folder in found.items()])
    if model != "small":  # a CPU without arithmetic in 16 bits takes a quarter of an hour for each
        return
    usual = [(model, found[format], ("vllm bfloat16", model, format)) for format in BFLOAT16 if format in found]
    in_vllm(usual, dtype="bfloat16")


def _by_llama_cpp(model: str, found: dict[str, Path]) -> None:
    names = {format: f"{model}-{format}" for format in found}
    files = to_gguf({names[format]: folder for format, folder in found.items()})
    for format, name in names.items():
        if record("llama.cpp", model, format) is None:
            refused = files[name].get("error")
            said = {"engine": "llama.cpp", "version": llama_version(), "error": f"its converter: {refused}"}
            keep(said if refused else measured(Path(files[name]["file"]), model), "llama.cpp", model, format)


if __name__ == "__main__":
    for model in sys.argv[1:] or ("small", "smollm2"):
        run(model, (*FORMATS, *MIXED) if model == "small" else ON_SMOLLM2)

"""The mend of a diagnosis as a recipe: what the checkpoint has, with the groups spared that cost most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.recipes import NamedMatrix
from studfinder.records import UNTOUCHED, ModelCard, Recipe
from studfinder.records.diagnosis import PartDiagnosis
from studfinder.verbs.recipe import recipe_for
from studfinder.verbs.recipe_outline import Outline

_OF_PRECISION = ("rows", "columns", "rounding", "column scales")
"""Faults that more bits mend; what is lost or wrong is to be written anew."""
_MOST, _LEAST = 3, 0.02
"""Groups that are spared at most, and the share of the loss that each must win."""
_OURS = "studfinder.json"


def spared_parts(parts: Sequence[PartDiagnosis]) -> list[PartDiagnosis]:
    """The parts that are worth more bits: broken by too few, or those of a healthy checkpoint that win most."""
    broken = [part for part in parts if part.breaks]
    if any(part.pattern not in _OF_PRECISION for part in broken):
        return []
    if broken:
        return broken
    won = [part for part in parts if part.won is not None and part.won.low > 0 and (part.share or 0) >= _LEAST]
    return won[:_MOST]


def recipe_mend(
    card: ModelCard, outline: Outline, stored: Mapping[NamedMatrix, str], spared: Sequence[PartDiagnosis]
) -> Recipe | None:
    """The checkpoint's own formats, with some groups left in 16 bits; None where it does not say its formats, or they
    have no name here."""
    formats: dict[str, str] = {}
    for matrix, format in stored.items():
        if matrix.group:
            formats.setdefault(matrix.group, format)
    names = {part.name: f"wins {part.share or 0:.0%} of the KL when it is put back" for part in spared}
    if not names or not names.keys() <= formats.keys():
        return None
    usual = Counter(formats.values()).most_common(1)[0][0]
    decided = "spared: what wins most when it alone is put back (studfinder diagnose)"
    formats |= dict.fromkeys(names, UNTOUCHED)
    try:
        return recipe_for(outline, card, usual, formats, names, decided=decided)
    except (StudfinderError, ValueError):  # a tool's own word for a format
        return None


def mend_line(made: LM, original: str, spared: Sequence[PartDiagnosis], recipe: str) -> str:
    """What to do with a recipe, in the tool that made the checkpoint.

    Args:
        recipe: where it is, in words.
    """
    what = f"Leave {', '.join(part.name for part in spared)} in 16 bits"
    folder = made.source.folder
    if folder is not None and (folder / _OURS).is_file():
        return f"{what}: studfinder quantize {original} --plan {recipe} --out NEW"
    tool = _TOOLS.get(made.source.quantised or "", "llm-compressor")
    return f"{what}: studfinder recipe write {recipe} --for {tool}"


_TOOLS = {
    "gptq": "gptqmodel",
    "auto-round": "auto-round",
    "intel/auto-round": "auto-round",
    "bitsandbytes": "bitsandbytes",
}
"""Which tool makes what is packed so."""

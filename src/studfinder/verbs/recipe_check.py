"""recipe check: what each rule of a tool's file, or of a finished checkpoint, matches in a model."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studfinder.errors import StudfinderError
from studfinder.recipes import NamedMatrix, Rule, RuleSet, read_rules_file, rule_set
from studfinder.recipes.matching import by_name
from studfinder.records import UNTOUCHED, Recipe, from_json
from studfinder.records.loading import SourceConfig
from studfinder.verbs.recipe_outline import outline_of

_OWN = "("
"""How a rule begins that no file holds, but its tool's code."""


@dataclass(frozen=True, kw_only=True)
class RuleMatch:
    """What one rule matches.

    Attributes:
        rule: as the file says it.
        stored_as: what it makes of a matrix.
        module, stacked, checkpoint, fused, gguf: how many matrices it matches, by the kind of name that it matched.
        decides: of how many it is the rule that counts: others may come before it.
        first: some of them.
    """

    rule: str
    stored_as: str
    module: int = 0
    stacked: int = 0
    checkpoint: int = 0
    fused: int = 0
    gguf: int = 0
    decides: int = 0
    first: tuple[str, ...] = ()

    @property
    def matches(self) -> int:
        """How many matrices, by any name."""
        return self.module + self.stacked + self.checkpoint + self.fused + self.gguf


@dataclass(frozen=True, kw_only=True)
class RecipeCheck:
    """What the rules of a file come to in a model.

    Attributes:
        tool, model: whose rules, and of which model.
        rules: each with what it matches.
        formats: how many matrices come to each format.
        split: fused groups whose members come to different formats, with those.
        left_over: matrices of the blocks that no rule names, and the format that they have so.
        default: that format.
    """

    tool: str
    model: str
    rules: tuple[RuleMatch, ...]
    formats: dict[str, int]
    split: dict[str, dict[str, str]]
    left_over: tuple[str, ...]
    default: str

    @property
    def unmatched(self) -> tuple[str, ...]:
        """Rules that match nothing."""
        return tuple(one.rule for one in self.rules if not one.matches)

    @property
    def good(self) -> bool:
        """Whether each rule matches something, and no fused group is split."""
        return not self.unmatched and not self.split


def check_recipe(
    recipe: str | Path, model: Any, config: SourceConfig | None = None, *, tool: str | None = None
) -> RecipeCheck:
    """What each rule matches, from the model's config and index alone.

    Args:
        recipe: a file of any tool or of ours, a config.json with a quantization_config, or a checkpoint's folder.
        model: as `load` takes it; of a folder and a hub id no weights are read.
        tool: whose file it is; the default is to tell by what it holds.

    Raises:
        StudfinderError: the file is of no tool, a rule is none, or the model's config cannot be read.
    """
    value = read_rules_file(Path(recipe))
    rules = _own_rules(value, Path(recipe)) if _is_own(value) else rule_set(value, tool, name=str(recipe))
    outline = outline_of(model, config or SourceConfig())
    if rules.gguf and not any(matrix.gguf for matrix in outline.matrices):
        raise StudfinderError(
            f"GGUF has no names for {outline.lm.anatomy.architecture}", expected="another tool's file"
        )
    return checked_rules(rules, outline.matrices, outline.lm.source.id)


def checked_rules(rules: RuleSet, matrices: tuple[NamedMatrix, ...], model: str) -> RecipeCheck:
    """What rules come to for these matrices."""
    formats = {matrix.module: rules.format_of(matrix) for matrix in matrices}
    deciding = {(m.module, about): rules.deciding(m, about) for m in matrices for about in ("weights", "inputs")}
    texts: dict[str, list[Rule]] = {}
    for rule in rules.rules:
        if not rule.text.startswith(_OWN):
            texts.setdefault(rule.text, []).append(rule)
    left = [m for m in matrices if m.layer is not None and m.group and _unnamed(deciding[m.module, "weights"])]
    groups: dict[str, dict[str, str]] = {}
    for matrix in matrices:
        if matrix.group:
            groups.setdefault(matrix.group, {})[matrix.module] = formats[matrix.module]
    return RecipeCheck(
        tool=rules.tool,
        model=model,
        rules=tuple(_matches(text, some, rules, matrices, deciding) for text, some in texts.items()),
        formats=dict(Counter(formats[m.module] for m in matrices if m.group)),
        split={name: members for name, members in groups.items() if len(set(members.values())) > 1},
        left_over=tuple(matrix.module for matrix in left),
        default=rules.default,
    )


def _unnamed(rule: Rule | None) -> bool:
    return rule is None or rule.text.startswith(_OWN)


def _matches(
    text: str, some: list[Rule], rules: RuleSet, matrices: tuple[NamedMatrix, ...], deciding: dict[Any, Rule | None]
) -> RuleMatch:
    found = {}
    for matrix in matrices:
        kind = next((kind for rule in some if (kind := rules.matched(rule, matrix))), None)
        if kind is not None:
            found[matrix.module] = kind
    counts = Counter(found.values())
    decides = sum(any(deciding[name, about] in some for about in ("weights", "inputs")) for name in found)
    said = list(dict.fromkeys(rule.stored_as for rule in some))
    return RuleMatch(
        rule=text, stored_as=", inputs ".join(said), decides=decides, first=tuple(found)[:3], **dict(counts)
    )


def _is_own(value: Any) -> bool:
    return isinstance(value, dict) and value.get("format") == Recipe.format


def _own_rules(value: Any, path: Path) -> RuleSet:
    recipe = from_json(Recipe, json.dumps(value), name=str(path))
    made = [
        Rule(group.name, group.stored_as, by_name(frozenset(group.members).__contains__)) for group in recipe.groups
    ]
    made += [Rule(module, UNTOUCHED, by_name(module.__eq__)) for module in recipe.left_modules]
    return RuleSet("studfinder", tuple(made), UNTOUCHED)

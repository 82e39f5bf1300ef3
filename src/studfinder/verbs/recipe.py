"""recipe: a format for every fused group from what a run found, written for the user's own tools."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from studfinder.errors import StudfinderError
from studfinder.quantizers.scheme import tile
from studfinder.quantizers.targets import Target
from studfinder.recipes import tool_named, written
from studfinder.records import (
    Findings,
    LeftOut,
    ModelCard,
    Plan,
    Recipe,
    RecipeGroup,
    Result,
    RunCard,
    format_named,
    read_record,
    to_json,
    to_plain,
)
from studfinder.records.outside import whole_number
from studfinder.report.words import count
from studfinder.runs import check_place, key_of, kind_of, run_of, versions, write_text
from studfinder.verbs.configs import RecipeConfig
from studfinder.verbs.recipe_outline import Outline, members_of, outline_of

_WORST = 3
_GROUPS = (128, 64, 32)


def recipe_of(source: str | Path, config: RecipeConfig | None = None) -> Recipe:
    """The recipe that a run's findings come to, or the one that a file holds.

    Args:
        source: a scan, a run of quantize/which-layer, a plan or a recipe: its folder or its file.

    Raises:
        StudfinderError: the run is of another kind, the model is not where it was or another one, a format that does
            not fit a matrix, or nothing of what was asked for is there to be spared.
    """
    config = config or RecipeConfig()
    place = Path(source)
    kind, file = kind_of(place)
    if kind in (Recipe.format, Plan.format):
        return _read(kind, file, config)
    usual, spared_as = _asked(config)
    if kind == Findings.format:
        found: Any = read_record(Findings, file)
        card, run = found.model, found.run
    elif kind == Result.format:
        found = read_record(Result, file)
        card, run = _judged(found, config), found.run
    else:
        raise StudfinderError(
            f"{place} says nothing of layers", expected="a scan, quantize/which-layer, plan or recipe"
        )
    outline = outline_of(config.model or card.id, config)
    _check_same(outline, card)
    if isinstance(found, Findings):
        spared, decided = _of_findings(outline, found, config.spare or "proven")
    else:
        spared, decided = _of_table(outline, found, card, config.spare or "worst")
    return recipe_for(
        outline,
        card,
        usual or _usual(outline, config),
        dict.fromkeys(spared, spared_as),
        spared,
        decided=decided,
        origin=f"{run.verb} {run.key}".strip(),
        run=run,
    )


def recipe_for(
    outline: Outline,
    card: ModelCard,
    usual: str,
    formats: dict[str, str],
    why: dict[str, str],
    *,
    decided: str,
    origin: str = "",
    run: RunCard | None = None,
) -> Recipe:
    """A recipe with one format for most groups.

    Args:
        usual: the format of groups that `formats` has not.
        formats, why: by group.

    Raises:
        StudfinderError: a format that does not fit a matrix.
    """
    groups = []
    for name, targets in outline.groups.items():
        members = dict(members_of(targets))
        stored_as = formats.get(name, usual)
        shapes = [_fitting(target, outline, stored_as) for target in members.values()]
        groups.append(
            RecipeGroup(
                name=name,
                members=tuple(members),
                shapes=tuple(shapes),
                stored_as=stored_as,
                why=why.get(name, ""),
                layer=targets[0].layer,
            )
        )
    left = tuple(LeftOut(module=matrix.module, why=_why_left(matrix)) for matrix in outline.left)
    known = {name: versions()[name] for name in ("studfinder", "transformers")}
    return Recipe(
        model=card, decided=decided, origin=origin, run=run, groups=tuple(groups), left_out=left, versions=known
    )


def _why_left(matrix: Any) -> str:
    return (
        "an embedding"
        if "Linear" not in matrix.kinds
        else "in no block"
        if matrix.layer is None
        else "a router or gate"
    )


def _fitting(target: Target, outline: Outline, stored_as: str) -> tuple[int, int]:
    rows, cols = target.weight(outline.lm).shape
    scheme = format_named(stored_as).weights
    if scheme is not None:
        try:
            tile((rows, cols), scheme)
        except StudfinderError as error:
            raise StudfinderError(
                f"{target.name}: {error.what}", expected=error.expected, do="Choose another --group"
            ) from None
    return rows, cols


def write_recipe(source: str | Path, config: RecipeConfig) -> tuple[Recipe, list[Path]]:
    """Make a recipe and write it: recipe.json and a file for each tool. Raises as `recipe_of` and the writers."""
    for tool in config.tools:
        tool_named(tool)
    recipe = recipe_of(source, config)
    texts = {"recipe.json": to_json(recipe, indent=1) + "\n"}
    for tool in dict.fromkeys(config.tools):
        texts[tool_named(tool).FILE] = written(recipe, tool)
    plain = {**to_plain(recipe), "versions": {}}
    folder = run_of("recipe", recipe.model.id, {"recipe": key_of(plain)}, result="recipe.json").path
    folder = folder if config.out is None else Path(config.out)
    if config.out is not None and not (folder / "recipe.json").is_file():
        check_place(folder, config.overwrite, [])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(folder / name, text)
    return recipe, [folder / name for name in texts]


def _read(kind: str, file: Path, config: RecipeConfig) -> Recipe:
    """What says already which matrix gets which format; of a plan with several solutions, that of the tool."""
    said = [name for name in ("bits", "group", "zero", "format", "spare") if getattr(config, name) is not None]
    if said:
        what = "a recipe" if kind == Recipe.format else "a plan"
        raise StudfinderError(f"--{said[0]} beside {what}, which says it already", expected="a run's findings")
    if kind == Recipe.format:
        return read_record(Recipe, file)
    plan, asked = read_record(Plan, file), set(config.tools)
    tools = [one.tool for one in plan.solutions]
    if len(tools) > 1 and not (len(asked) == 1 and asked <= set(tools)):
        raise StudfinderError(
            f"{file} holds a plan for each of {', '.join(tools)}", do="Ask for one of them with --for"
        )
    return plan.recipe(tools[0] if len(tools) == 1 else asked.pop(), origin=str(file.parent))


def _asked(config: RecipeConfig) -> tuple[str | None, str]:
    """The format that is asked for, if it was said by name, and that of what is spared."""
    if config.format is not None and (config.bits, config.group, config.zero) != (None, None, None):
        raise StudfinderError("--format with --bits, --group or --zero", expected="one or the other")
    usual = None if config.format is None else format_named(config.format).name
    return usual, format_named(config.spare_as).name


def _usual(outline: Outline, config: RecipeConfig) -> str:
    cols = {target.weight(outline.lm).shape[1] for targets in outline.groups.values() for target in targets}
    group = next((str(size) for size in _GROUPS if all(col % size == 0 for col in cols)), "channel")
    group = config.group or group
    block = f"g{group}" if whole_number(group) is not None else group
    zeros = {"integer": "-zero", "none": "", "float": "-float"}
    if (config.zero or "integer") not in zeros:
        raise StudfinderError(f"--zero {config.zero}", expected=", ".join(zeros))
    return format_named(f"int{config.bits or 4}-{block}{zeros[config.zero or 'integer']}").name


def _check_same(outline: Outline, card: ModelCard) -> None:
    anatomy = outline.lm.anatomy
    here = (anatomy.architecture, len(anatomy.layers), anatomy.hidden)
    if here != (card.architecture, card.layers, card.hidden):
        raise StudfinderError(
            f"{outline.lm.source.id} is {here[0]} with {here[1]} layers of {here[2]}",
            expected=f"{card.id}: {card.architecture} with {card.layers} layers of {card.hidden}",
            do="Say where it is with --model",
        )


def _of_findings(outline: Outline, found: Findings, spare: str) -> tuple[dict[str, str], str]:
    """The groups that hold what is to be spared, with what that is; and what decided, in words."""
    if spare == "none":
        return {}, "nothing is spared"
    every: list[Any] = [*found.super_weights, *found.other_numbers]
    chosen: dict[str, Iterable[Any]] = {
        "proven": found.proven_numbers,
        "tested": [one for one in every if one.effect is not None],
        "all": every,
    }
    if spare not in chosen:
        raise StudfinderError(f"--spare {spare[:40]} of a scan", expected="proven, tested, all or none")
    spared: dict[str, list[str]] = {}
    for one in chosen[spare]:
        for name in _holding(outline, one.parameter, one.index):
            spared.setdefault(name, []).append(f"{one}, {one.verdict}")
    if not spared:
        held = "no number" if not list(chosen[spare]) else "only numbers outside the matrices (gains, say)"
        raise StudfinderError(
            f"the scan has {held} that is {spare}", expected="a matrix to spare", do="--spare none, or tested, or all"
        )
    kind = "that are proven" if spare == "proven" else "that were tested" if spare == "tested" else "found"
    decided = f"spared: {count(len(spared), 'group', 'groups')} with the numbers {kind} by a scan"
    return {name: "; ".join(said) for name, said in spared.items()}, decided


def _holding(outline: Outline, parameter: str, index: Sequence[int]) -> list[str]:
    """The group of the matrix that a number is in."""
    return [
        name
        for name, targets in outline.groups.items()
        if any(target.ref.parameter == parameter and _in(target, index) for target in targets)
    ]


def _in(target: Target, index: Sequence[int]) -> bool:
    part = target.part
    return part is None or (index[0] == part.expert and part.first <= index[1] < part.first + part.rows)


def _judged(found: Result, config: RecipeConfig) -> ModelCard:
    if found.name != "quantize/which-layer":
        raise StudfinderError(f"{found.name} ranks no layers", expected="a run of quantize/which-layer")
    cards = [card for card in found.models if config.model in (None, card.id)] or list(found.models)
    if len(cards) != 1 or not cards[0].content_hash:
        raise StudfinderError(
            "the run has several models", expected="--model with one of " + ", ".join(c.id for c in cards)
        )
    return cards[0]


def _of_table(outline: Outline, found: Result, card: ModelCard, spare: str) -> tuple[dict[str, str], str]:
    if spare == "none":
        return {}, "nothing is spared"
    asked = re.fullmatch(r"worst(?::([1-9]\d{0,5}))?", spare)
    if asked is None:
        raise StudfinderError(f"--spare {spare[:40]} of quantize/which-layer", expected="worst, worst:N or none")
    told = found.run.settings.get("worst")
    number = int(asked[1]) if asked[1] else told if isinstance(told, int) else _WORST
    models = found.data.get("models")
    own = models.get(card.id) if isinstance(models, dict) else None
    rows = own.get("groups") if isinstance(own, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 3 for row in rows):
        raise StudfinderError("the run holds no KL of single groups", do="Run quantize/which-layer again")
    spared = {}
    for layer, kind, kl in sorted(rows, key=lambda row: -float(row[2]))[:number]:
        name = next(
            (one for one, each in outline.groups.items() if each[0].layer == layer and one.rpartition(".")[2] == kind),
            None,
        )
        if name is None:
            raise StudfinderError(f"{card.id} has no {kind} in layer {layer}", expected="the model of the run")
        spared[name] = f"KL {float(kl):.4g} alone"
    return spared, f"spared: the {number} with the largest KL when they alone are rounded (quantize/which-layer)"

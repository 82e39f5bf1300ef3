"""studfinder recipe"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studfinder.cli import options as o
from studfinder.cli.faces import face
from studfinder.records.loading import SourceConfig
from studfinder.verbs.configs import ImatrixConfig, RecipeConfig
from studfinder.visible import say, say_json

if TYPE_CHECKING:
    from studfinder.verbs.recipe_check import RecipeCheck

WRITE_EXAMPLES = """Examples:

\b
  studfinder recipe write runs/smollm2/scan-... --for llm-compressor --for llama.cpp   what is proven stays in 16 bits
  studfinder recipe write RUN --for gptqmodel --bits 4 --group 64 --spare-as int8-g64  or in 8
  studfinder recipe write runs/smollm2/experiment-... --for auto-round --spare worst:2 by quantize/which-layer's table
  studfinder recipe write recipe.json --for mlx                                        one that was written before
"""
CHECK_EXAMPLES = """Examples:

\b
  studfinder recipe check llm-compressor.yaml ./my-model    what does each rule match?
  studfinder recipe check ./w4 ./w4                         a finished checkpoint's own quantization_config
  studfinder recipe check mine.txt smollm2 --tool llama.cpp
"""
IMATRIX_EXAMPLES = """Examples:

\b
  studfinder recipe imatrix ./my-model --out my-model.imatrix.gguf
  studfinder recipe imatrix smollm2 --out apart.gguf --first-token-apart    without the first token's spike
  llama-quantize --imatrix my-model.imatrix.gguf my-model.gguf out.gguf Q4_K_M
"""
_SHOWN = 12


@face(RecipeConfig)
def write_command(
    findings: Annotated[Path, typer.Argument(metavar="FINDINGS", help="A scan, a which-layer run, or a recipe.json.")],
    config: RecipeConfig,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Write what a run found as a recipe for your own tool: a format for every fused group, what matters spared."""
    from studfinder.recipes import tool_named
    from studfinder.records import to_json
    from studfinder.verbs.recipe import write_recipe

    recipe, files = write_recipe(findings, config)
    if as_json:
        say_json(to_json(recipe, indent=1))
        return
    say(f"{recipe.model.id}: {recipe.decided}")
    for name, members in recipe.by_format():
        say(f"  {name}: {len(members)} matrices")
    for group in recipe.groups:
        if group.why:
            say(f"  {group.stored_as}: {group.name} ({group.why})")
    for file in files:
        say(f"written   {file}")
    for tool in config.tools:
        say(f"use       {tool_named(tool).USE}")
    if not config.tools:
        say("Next: studfinder recipe write with --for TOOL")


@face(SourceConfig)
def check_command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe's file, or a quantised checkpoint.")],
    model: o.Model,
    config: SourceConfig,
    tool: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Whose file it is.  [default: by what it holds]")
    ] = None,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Say what each rule of a recipe matches in a model, what splits a fused group, and what is left over.

    Of a folder or a hub id only the config and the index are read. Exit code 1 where a rule matches nothing or splits a
    fused group.
    """
    from studfinder.records import to_json
    from studfinder.verbs.recipe_check import check_recipe

    found = check_recipe(recipe, model, config, tool=tool)
    if as_json:
        say_json(to_json(found, indent=1))
    else:
        _print(found)
    if not found.good:
        raise typer.Exit(1)


@face(ImatrixConfig)
def imatrix_command(model: o.Model, config: ImatrixConfig, debug: o.Debug = False) -> None:
    """Write an importance file for llama-quantize: how large each input of each matrix is on calibration text."""
    from dataclasses import replace

    from studfinder.cli.progress import progress_bar
    from studfinder.verbs.recipe_imatrix import write_imatrix

    with progress_bar(False) as progress:
        tensors = write_imatrix(model, replace(config, progress=progress))
    tokens = int(max(one.counts.max() for one in tensors.values()))
    say(f"{len(tensors)} tensors over {tokens:,} tokens")
    empty = sum(int((one.counts == 0).sum()) for one in tensors.values())
    if empty:
        say(f"{empty} experts were reached by no token")
    say(f"written   {config.out}")


def _print(found: RecipeCheck) -> None:
    from rich.table import Table

    from studfinder.report.screen import Screen

    console = Screen()
    table = Table("rule", "becomes", "matches", "decides", "by the name of", "e.g.", box=None, header_style="dim")
    for one in found.rules[:_SHOWN]:
        kinds = [kind for kind in ("module", "stacked", "checkpoint", "fused", "gguf") if getattr(one, kind)]
        table.add_row(
            one.rule,
            one.stored_as,
            str(one.matches),
            str(one.decides),
            ", ".join(kinds),
            one.first[0] if one.first else "",
        )
    console.print(table)
    if len(found.rules) > _SHOWN:
        console.print(f"and {len(found.rules) - _SHOWN:,} rules more (recipe check --json has them all)", style="dim")
    for name, number in found.formats.items():
        say(f"{name}: {number:,} matrices of the blocks")
    if found.left_over:
        say(f"no rule names {len(found.left_over):,} of them, which are {found.default} so: {_some(found.left_over)}")
    for name in found.unmatched:
        say(f"matches nothing: {name}")
    for group, members in found.split.items():
        parts = ", ".join(f"{module.rpartition('.')[2]} {stored}" for module, stored in list(members.items())[:6])
        say(f"splits a fused group: {group} ({parts})")
    say(
        f"{found.tool}, {len(found.rules):,} rules: "
        + ("all match, and no fused group is split" if found.good else "faults")
    )


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (" and so on" if len(names) > 3 else "")

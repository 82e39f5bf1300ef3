"""studfinder ls"""

from __future__ import annotations

import re
from typing import Annotated

import typer

from studfinder.errors import StudfinderError

_WHAT = ("models", "architectures", "detectors", "measures", "tasks", "experiments", "methods", "schemes")


def command(
    what: Annotated[str, typer.Argument(metavar="WHAT", help=f"{', '.join(_WHAT[:-1])} or {_WHAT[-1]}.")] = "models",
) -> None:
    """List what there is: models, measures, experiments and so on."""
    if what not in _WHAT:
        raise StudfinderError(f"there is no list of {what!r}", expected=", ".join(_WHAT))
    from rich.table import Table

    from studfinder.report.screen import Screen

    console = Screen()
    if what == "models":
        from studfinder.models import BUILTINS, builtin_folder

        table = Table("name", "download", "on disk", "here", "licence", "what it is", box=None, header_style="dim")
        for builtin in BUILTINS.values():
            here = "yes" if (builtin_folder(builtin) / "config.json").is_file() else "no"
            down, disk = builtin.megabytes
            table.add_row(builtin.name, f"{down} MB", f"{disk} MB", here, builtin.licence, builtin.origin)
        console.print(table)
        console.print("Any folder, .gguf file or hub id of a decoder works too.", style="dim")
    elif what == "architectures":
        from studfinder.models.tried import architectures_table

        full = architectures_table()
        table = Table(box=None, header_style="dim", padding=(0, 1), title=full.title, title_justify="left")
        for number, column in enumerate(full.columns):
            table.add_column(column, no_wrap=number == 0, justify="right" if column == "layers" else "left")
        for row in full.rows:  # the reasons stand on the page
            table.add_row(*(re.split(r"[:;(]", str(cell))[0].strip() for cell in row))
        console.print(table)
        console.print(str(full.note))
        console.print("What did not work, and why: docs/results/architectures.md", style="dim")
        console.print("Any other decoder is measured in the same way: studfinder anatomy MODEL", style="dim")
    elif what == "detectors":
        from studfinder.detectors import DETECTORS

        for name, place in DETECTORS.items():
            console.print(f"{name:22}{place}")
    elif what == "measures":
        from studfinder.measures import MEASURES

        table = Table("name", "about", "what it is", "argument", box=None, header_style="dim")
        for name, measure in MEASURES.items():
            table.add_row(name, measure.kind, measure.summary, measure.argument)
        console.print(table)
        console.print("An argument follows after a colon: perplexity:wikitext2.", style="dim")
    elif what == "tasks":
        from studfinder.measures.tasks import TASKS, availability

        table = Table("name", "about", "documents from", "what it is", box=None, header_style="dim")
        for name, task in TASKS.items():
            table.add_row(name, task.kind, availability(name), task.summary)
        console.print(table)
    elif what == "methods":
        from studfinder.quantizers import METHODS, method_class

        table = Table("name", "what it does", box=None, header_style="dim")
        for name in METHODS:
            table.add_row(name, (method_class(name).__doc__ or "").strip().split("\n\n")[0].replace("\n", " "))
        console.print(table)
        console.print("studfinder quantize MODEL --method NAME --out DIR", style="dim")
    elif what == "schemes":
        from studfinder.quantizers import SCHEMES, seen_in_words
        from studfinder.records import Format

        table = Table("name", "spelled", "what it is", "seen to load in", box=None, header_style="dim")
        for name, scheme in SCHEMES.items():
            table.add_row(name, scheme.name, str(scheme), seen_in_words(Format(weights=scheme)))
        console.print(table)
        console.print("Others are spelled the same way: int3-g32, int8-channel-zero, int4-128x128.", style="dim")
        console.print("studfinder quantize MODEL --scheme NAME --out DIR", style="dim")
    else:
        from studfinder.experiments import EXPERIMENTS, experiment_named

        table = Table("name", "paper", "shows", "asks", box=None, header_style="dim")
        for name in EXPERIMENTS:
            entry = experiment_named(name).EXPERIMENT
            table.add_row(name, entry.paper, entry.shows, entry.summary)
        console.print(table)

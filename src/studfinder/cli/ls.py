"""studfinder ls"""

from __future__ import annotations

from typing import Annotated

import typer

from studfinder.errors import StudfinderError

_WHAT = ("models", "architectures", "detectors")


def command(
    what: Annotated[str, typer.Argument(help="models, architectures or detectors.")] = "models",
) -> None:
    """List the built-in models, the known architectures or the detectors."""
    if what not in _WHAT:
        raise StudfinderError(f"there is no list of {what!r}", expected=", ".join(_WHAT))
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if what == "models":
        from studfinder.models import BUILTINS, builtin_folder

        table = Table("name", "download", "on disk", "here", "licence", "what it is", box=None, header_style="dim")
        for builtin in BUILTINS.values():
            here = "yes" if (builtin_folder(builtin) / "config.json").is_file() else "no"
            down, disk = builtin.megabytes
            table.add_row(builtin.name, f"{down} MB", f"{disk} MB", here, builtin.licence, builtin.origin)
        console.print(table)
        console.print("Any folder, .gguf file or hub id of a known architecture works too.", style="dim")
    elif what == "architectures":
        from studfinder.models import FAMILIES

        table = Table("model_type", "blocks", "attention", "writers", box=None, header_style="dim")
        for name, family in sorted(FAMILIES.items()):
            table.add_row(name, family.layers[0], family.attention, ", ".join(family.writers))
        console.print(table)
    else:
        from studfinder.detectors import REGISTRY

        for name, place in REGISTRY.items():
            console.print(f"{name:22}{place}", highlight=False)

"""studfinder anatomy"""

from __future__ import annotations

from studfinder.cli import options as o
from studfinder.cli.faces import face
from studfinder.records.loading import ReadConfig
from studfinder.visible import say_json

EXAMPLES = """Examples:

\b
  studfinder anatomy                               the built-in SmolLM2-135M-Instruct
  studfinder anatomy ./my-model --json             as a record, with every layer's parts by name
"""


@face(ReadConfig)
def command(
    config: ReadConfig,
    model: o.Model = "smollm2",
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Print a model's parts: blocks, attention, feed-forward networks, experts, norms, and what engines fuse.

    They are measured on the live model, in one look at what depends on what, and never looked up by name. What could
    not be confirmed is said to be unknown.
    """
    from rich.table import Table

    from studfinder.records import to_json
    from studfinder.report.screen import Screen
    from studfinder.verbs.anatomy import anatomy_in_words
    from studfinder.verbs.load import load_as

    lm = load_as(model, config)
    if as_json:
        say_json(to_json(lm.anatomy, indent=1))
        return
    console = Screen()
    for heading, parts in anatomy_in_words(lm.anatomy):
        console.print(heading, style="bold")
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for name, what in parts:
            table.add_row(f"  {name}", what)
        console.print(table)
        console.print()
    console.print(f"Next: studfinder scan {model}", style="dim")

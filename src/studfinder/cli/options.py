"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="A built-in name, a folder, a .gguf file or a hub id.")]
Dtype = Annotated[str, typer.Option(help="auto (the checkpoint's own), float32, bfloat16 or float16.")]
Device = Annotated[str | None, typer.Option(help="Where to run, e.g. cuda.  [default: cpu]", show_default=False)]
DeviceMap = Annotated[str | None, typer.Option(help="Handed to transformers, e.g. auto.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub repository.")]
Attention = Annotated[str | None, typer.Option(help="transformers' attn_implementation, e.g. eager.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
AllowPickle = Annotated[bool, typer.Option("--allow-pickle", help="Read pickle weights, which can run code.")]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Load although tensors are missing (random) or left over; recorded.")
]
MergeAdapter = Annotated[
    bool, typer.Option("--merge-adapter", help="Merge an adapter's folder into its base model (needs peft).")
]
Json = Annotated[bool, typer.Option("--json", help="Print the record on stdout and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
BatchSize = Annotated[
    str, typer.Option(help="Tokens read in one pass, a number or auto (halved where memory does not hold it).")
]


def batch_tokens(given: str) -> int | None:
    """What --batch-size says: tokens, or None for auto. Raises StudfinderError for anything else."""
    from studfinder.errors import StudfinderError
    from studfinder.records.outside import whole_number

    if given == "auto":
        return None
    tokens = whole_number(given)
    if tokens is None:
        raise StudfinderError(f"--batch-size {given[:40]}", expected="a number of tokens, or auto")
    return tokens

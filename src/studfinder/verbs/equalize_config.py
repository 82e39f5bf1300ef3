"""What `equalize` is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from studfinder.records.config import option
from studfinder.records.loading import LoadConfig
from studfinder.runs import Progress
from studfinder.verbs.configs import in_notebook

EQUAL_KINDS = {"columns": "column", "key-bias": "key bias", "value-bias": "value bias"}
"""What may be changed, as it is asked for and as records call it."""


@dataclass(frozen=True)
class EqualizeConfig(LoadConfig):
    """What `equalize` changes, how sure it has to be, and what it measures."""

    out: Any = option(None, line=Path, help="Folder of the new checkpoint.", identity=False)
    push_to_hub: str | None = option(
        None, help="Upload it to this repository, owner/name; one that is new is private.", identity=False
    )
    _: KW_ONLY
    overwrite: bool = option(False, help="Replace a checkpoint in --out.", identity=False)
    dtype: Any = option(
        "float32",
        line=str,
        help="In which numbers it is measured: float32, auto (the checkpoint's own, which is what is written), "
        "bfloat16, float16 or float64.",
        identity=False,
    )
    findings: Any = option(
        None,
        line=Path,
        help="A scan of this model, whose proven super weights' columns are rebalanced.",
        identity=False,
    )
    only: Sequence[str] = option(
        (), commas=True, help="What may be changed: columns, key-bias, value-bias.", otherwise="all that there is"
    )
    target: str = option("int4-g64-zero", help="The format that columns are rebalanced for.")
    context: int | None = option(
        None,
        least=2,
        help="Tokens of context up to which it has to hold, written into the config.",
        otherwise="the model's own limit",
    )
    bound: float = option(
        1e-4, above=0, help="Nats by which attention's weights of one query may differ, at most, by the stated formula."
    )
    most: float = option(1e-3, above=0, help="KL of the changed model above which nothing is written, nats per token.")
    formats: Sequence[str] = option(
        ("int4-g64-zero", "int4-channel-zero", "nvfp4", "fp8"),
        commas=True,
        help="Formats in which the gain is measured.",
    )
    lengths: Sequence[int] = option(
        (256, 2048), commas=True, help="Lengths of context at which it is measured.", above=1
    )
    text: str | Path = option("proof", line=str, help="The text that judges: proof (our own), a data set or a file.")
    limit: int = option(16, least=2, help="Windows of it.")
    calibration: str | Path = option(
        "wikipedia", line=str, help="The text that chooses: wikipedia, c4, a file, a folder or a data set of the hub."
    )
    samples: int = option(8, least=1, help="Windows of it.")
    length: int = option(512, least=2, help="Tokens of a window of it.")
    progress: Progress = option(
        in_notebook, line=False, identity=False, help="Told what is being done.", otherwise="a bar in notebooks"
    )

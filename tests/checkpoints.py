"""Tiny checkpoints on disk, and ways to run the command line on them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tiny import tiny, tokenizer

PROMPT = "w3 w4 w5 w6 w7 w8"


def checkpoint(folder: Path, architecture: str = "llama", **options) -> Path:
    """A tiny random model with its tokenizer, as a folder."""
    tiny(architecture, **options).model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def studfinder(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "studfinder", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        check=False,
    )

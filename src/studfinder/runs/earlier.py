"""Folders that version 0.1.0 wrote: their `run.json` names verb and settings, but has no list of files.

Finished ones are found and read. They are never gone on with, since their steps do not say what they belong to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FILES = re.compile(
    r"run\.json|items\.jsonl|findings\.json|profile\.safetensors|scorecard\.json|result\.json|report\.html|table\.md"
    r"|table(-\d+)?\.csv|figure-[\w-]+\.(png|svg)|tokens\.npy|tokenizer\.json|outliers\.jsonl|prompts\.jsonl"
    r"|(model|checkpoints|runs)/.*"
)
_CHECKPOINT = re.compile(
    r"studfinder\.json|README\.md|model.*\.safetensors(\.index\.json)?|[\w.-]+\.(json|txt|model|jinja|tiktoken)"
)


def is_earlier(folder: Path, verb: str | None = None, identity: Mapping[str, Any] | None = None) -> bool:
    """Whether a folder is a run or a checkpoint of the earlier version.

    Args:
        verb, identity: if given, it must also be a run of this verb, whose settings are all among these.
    """
    if verb is None and _is_checkpoint(folder):
        return True
    found = _run(folder)
    if found is None or verb is None:
        return found is not None
    now = json.loads(json.dumps(dict(identity or {}), default=str))
    same = all(now.get(name) == value for name, value in found["settings"].items())
    return found["verb"] == verb and same


def earlier_files(folder: Path) -> list[str]:
    """The files in it that the earlier version gave these names."""
    names = _CHECKPOINT if _is_checkpoint(folder) else _FILES if _run(folder) is not None else None
    if names is None:
        return []
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(name for path in files if names.fullmatch(name := path.relative_to(folder).as_posix()))


def _is_checkpoint(folder: Path) -> bool:
    return (folder / "studfinder.json").is_file() and (folder / "config.json").is_file() and not _has_manifest(folder)


def _has_manifest(folder: Path) -> bool:
    return (folder / "run.json").exists()


def _run(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / "run.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or "format" in found or not isinstance(found.get("settings"), dict):
        return None
    return found if isinstance(found.get("verb"), str) else None

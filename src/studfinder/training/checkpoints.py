"""Checkpoints that know which run they belong to, and whether they are whole, file by file."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from studfinder.errors import StudfinderError
from studfinder.models.fingerprint import file_hash
from studfinder.runs import TEMPORARY, write_text

_MARK = "studfinder.json"


class Checkpoints(TrainerCallback):
    """Marks each checkpoint as whole, last of all, and keeps what Trainer forgets: the loss summed up since the last
    entry of its log. Without it the first entry after resuming would be of fewer steps."""

    def __init__(self, key: str, data: dict[str, Any]) -> None:
        self.key, self.data = key, data
        self.trainer: Any = None

    def attach(self, trainer: Any) -> None:
        """Told by `fit`."""
        self.trainer = trainer

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        loss = self.trainer.accelerator.gather(self.trainer._tr_loss.reshape(1)).mean().item()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            logged = self.trainer._globalstep_last_logged
            mark = {
                "key": self.key,
                "data": self.data,
                "loss_since_log": loss,
                "logged": logged,
                "files": _hashes(folder),
            }
            write_text(folder / _MARK, json.dumps(mark))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        mark = Path(args.output_dir) / f"checkpoint-{state.global_step}" / _MARK
        if state.global_step and mark.is_file():
            kept = json.loads(mark.read_text(encoding="utf-8"))
            self.trainer._tr_loss = torch.tensor(kept["loss_since_log"], device=args.device)
            self.trainer._globalstep_last_logged = kept["logged"]


def latest(folder: Path, key: str, data: dict[str, Any] | None = None) -> Path | None:
    """The last whole checkpoint of a run; half-written ones are removed.

    Args:
        key: of the run.
        data: what determines the data, with its hash where it is a text; None does not ask.

    Raises:
        StudfinderError: it belongs to another run or other data, or is not as it was written: going on from it would
            end with other weights.
    """
    remove_half(folder)
    for path in reversed(_checkpoints(folder)):
        kept, files, trained_on = None, dict[str, Any](), None
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            mark = json.loads((path / _MARK).read_text(encoding="utf-8"))
            kept, files, trained_on = mark["key"], {**mark["files"]}, mark["data"]
        if kept is not None and kept != key:
            raise StudfinderError(
                f"checkpoint {path} is of another run (key {kept}, now {key})",
                expected="the same model, data and recipe",
                do="Use another folder, or the settings it was made with",
            )
        if kept is not None and data is not None and trained_on != json.loads(json.dumps(data)):
            raise StudfinderError(
                f"checkpoint {path} was trained on other data",
                expected=f"what it was trained on, {trained_on}",
                do="Use another folder, or the data it was made with",
            )
        found = _hashes(path)
        differing = sorted(name for name in {*files, *found} if files.get(name) != found.get(name))
        if kept is None or differing:
            raise StudfinderError(
                f"checkpoint {path} is not as it was written ({differing[0] if files and differing else _MARK})",
                do="Remove that folder to go on from the one before it, or from the start",
            )
        return path
    return None


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint but its mark."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): file_hash(path)
        for path in files
        if path.name != _MARK and not path.name.endswith(TEMPORARY)
    }


def remove_half(folder: Path) -> None:
    """Remove the checkpoints that are not marked as whole."""
    for path in _checkpoints(folder):
        if not (path / _MARK).is_file():
            shutil.rmtree(path, ignore_errors=True)


def _checkpoints(folder: Path) -> list[Path]:
    """In the order of their steps."""
    found = (
        (int(match[1]), path)
        for path in folder.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    )
    return [path for _, path in sorted(found)]

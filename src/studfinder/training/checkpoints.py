"""Checkpoints that know which run they belong to and whether they are whole."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from studfinder.errors import StudfinderError
from studfinder.runs import write_text

_MARK = "studfinder.json"


class Checkpoints(TrainerCallback):
    """Marks each checkpoint as whole, last of all, and keeps what Trainer forgets: the loss summed up since the last
    entry of its log. Without it the first entry after resuming would be of fewer steps."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.trainer: Any = None

    def attach(self, trainer: Any) -> None:
        """Told by `fit`."""
        self.trainer = trainer

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        loss = self.trainer.accelerator.gather(self.trainer._tr_loss.reshape(1)).mean().item()
        if state.is_world_process_zero:
            mark = {"key": self.key, "loss_since_log": loss, "logged": self.trainer._globalstep_last_logged}
            write_text(Path(args.output_dir) / f"checkpoint-{state.global_step}" / _MARK, json.dumps(mark))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        mark = Path(args.output_dir) / f"checkpoint-{state.global_step}" / _MARK
        if state.global_step and mark.is_file():
            kept = json.loads(mark.read_text(encoding="utf-8"))
            self.trainer._tr_loss = torch.tensor(kept["loss_since_log"], device=args.device)
            self.trainer._globalstep_last_logged = kept["logged"]


def latest(folder: Path, key: str) -> Path | None:
    """The last whole checkpoint of a run; half-written ones are removed.

    Raises:
        StudfinderError: it belongs to another run.
    """
    remove_half(folder)
    for path in reversed(_checkpoints(folder)):
        kept = json.loads((path / _MARK).read_text(encoding="utf-8"))["key"]
        if kept != key:
            raise StudfinderError(
                f"checkpoint {path} is of another run (key {kept}, now {key})",
                expected="the same model, data and recipe",
                do="Use another folder, or the settings it was made with",
            )
        return path
    return None


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

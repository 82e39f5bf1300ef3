"""The record of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from studfinder.records.interval import Interval
from studfinder.records.public import OneLine
from studfinder.records.run import RunCard


@dataclass(frozen=True, kw_only=True)
class Training(OneLine):
    """What a run wrote to result.json, last of all.

    Attributes:
        run: settings, command, time, versions.
        parameters: of the model.
        tokens: seen in training.
        loss, accuracy: at the end, over the scored labels of the test sequences.
        log: Trainer's log, one dict an entry, with "step"; names that begin with "outliers/" are explained at
            `studfinder.training.outliers.Look`.
        diverged: whether the loss stopped being finite, which ended the run.
        processes: how many trained together.
    """

    format: Literal["studfinder.training"] = "studfinder.training"
    version: Literal[1] = 1
    run: RunCard
    parameters: int
    tokens: int
    loss: Interval
    accuracy: Interval
    log: tuple[dict[str, float], ...] = field(default_factory=tuple)
    diverged: bool = False
    processes: int = 1

    def curve(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of everything logged under a name, e.g. "eval_accuracy" or "outliers/inf_norm"."""
        return [(int(entry["step"]), entry[name]) for entry in self.log if name in entry]

"""Endless data with numbered examples: example i is made from (seed, i) alone, so that training resumes anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from studfinder.training.tasks import ToyTask
from studfinder.training.tasks.task import IGNORED

_Split = Literal["train", "test"]
_SPLITS = {"train": 0, "test": 1}


class SequenceSource(Protocol):
    """Where sequences come from: a task or a text."""

    @property
    def length(self) -> int: ...

    @property
    def vocabulary(self) -> int: ...

    @property
    def test_rows(self) -> int | None:
        """How many different test rows there are; None if they never end."""
        ...

    def row(self, split: _Split, seed: int, index: int) -> dict[str, np.ndarray]:
        """input_ids (T,) and labels (T,), and position_ids where documents are kept apart."""
        ...

    def settings(self) -> dict[str, Any]:
        """What determines the data."""
        ...


@dataclass(frozen=True)
class TaskSource:
    """Sequences of a toy task. Test rows have only the scored labels, and never depend on the seed."""

    task: ToyTask

    @property
    def length(self) -> int:
        return self.task.length

    @property
    def vocabulary(self) -> int:
        return self.task.vocabulary

    @property
    def test_rows(self) -> int | None:
        return None

    def row(self, split: _Split, seed: int, index: int) -> dict[str, np.ndarray]:
        example = self.task.example(_generator(split, seed, index))
        scored_only = split == "test" or self.task.train_on == "scored"
        labels_T = np.where(example.scored_T, example.labels_T, IGNORED) if scored_only else example.labels_T
        return {"input_ids": example.tokens_T, "labels": labels_T}

    def settings(self) -> dict[str, Any]:
        return self.task.to_dict()


def _generator(split: _Split, seed: int, index: int) -> np.random.Generator:
    # A counter-based generator: making one costs microseconds, and the streams of two indices never meet.
    key = np.array([0 if split == "test" else seed, _SPLITS[split]], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, index], dtype=np.uint64)))


class SequenceRows(Dataset):
    """The first `count` rows of a stream, as a dataset for Trainer: read in order, made when asked for."""

    def __init__(self, source: SequenceSource, split: _Split, seed: int, count: int) -> None:
        self.source, self.split, self.seed, self.count = source, split, seed, count

        if split == "test" and source.test_rows is not None:  # twice the same row would make intervals too narrow
            self.count = min(count, source.test_rows)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.source.row(self.split, self.seed, index)


def collate(rows: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Rows of one length as a batch, (B, T) each."""
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}

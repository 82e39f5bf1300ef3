"""What a toy task is: settings, and one sequence for each random generator."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Literal

import numpy as np

from studfinder.errors import StudfinderError, unknown
from studfinder.records.config import Config, worded

TOY_TASKS = {
    "induction": "studfinder.training.tasks.induction:Induction",
    "n-gram": "studfinder.training.tasks.n_gram:NGram",
    "hop-k": "studfinder.training.tasks.hop:HopK",
    "recall": "studfinder.training.tasks.recall:Recall",
    "backcopy": "studfinder.training.tasks.backcopy:Backcopy",
}
"""Every task, as module:class. A new one is one new file and one line here."""

IGNORED = -100
"""The label that transformers' loss passes over."""


@dataclass(frozen=True)
class Example:
    """One sequence.

    Attributes:
        tokens_T: token ids, int64.
        labels_T: what the model should say *before* it sees token t, as transformers counts labels: labels[t] is
            compared with the logits of token t-1. IGNORED where nothing is asked. labels[0] is never used.
        scored_T: bool; the labels that accuracy is taken over.
    """

    tokens_T: np.ndarray
    labels_T: np.ndarray
    scored_T: np.ndarray


@dataclass(frozen=True, kw_only=True)
class ToyTask(Config):
    """Base of all tasks.

    Attributes:
        vocabulary: how many token ids there are.
        length: tokens of a sequence; every sequence has exactly as many.
        train_on: "all" trains on every label (language modelling), "scored" on the scored ones alone.
    """

    name: ClassVar[str]

    vocabulary: int
    length: int
    train_on: Literal["all", "scored"] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 4:
            raise StudfinderError(f"sequences of {self.length} tokens are too short", expected="4 or more")

    def example(self, random: np.random.Generator) -> Example:
        """One sequence, drawn from `random` alone: the same generator gives the same sequence."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The settings, by name."""
        return {"task": self.name, **dataclasses.asdict(self)}


def task_from(text: str) -> ToyTask:
    """A task from its name and settings, e.g. "induction" or "induction:length=64,vocabulary=256".

    Raises:
        StudfinderError: there is no such task or setting.
    """
    name, _, rest = text.partition(":")
    if name not in TOY_TASKS:
        raise unknown("there is no task", name, TOY_TASKS)
    module, _, attribute = TOY_TASKS[name].partition(":")
    return worded(getattr(import_module(module), attribute), rest, f"task {name}")


def word_tokenizer(vocabulary: int) -> Any:
    """A tokenizer whose words are the token ids themselves ("0", "1", ...), for models trained on a task."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({str(i): i for i in range(vocabulary)}, unk_token="0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="0", pad_token="0")

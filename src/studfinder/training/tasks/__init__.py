"""Toy tasks: sequences whose right answers are known exactly, made as they are needed."""

from studfinder.training.tasks.backcopy import Backcopy
from studfinder.training.tasks.hop import HopK
from studfinder.training.tasks.induction import Induction
from studfinder.training.tasks.n_gram import NGram
from studfinder.training.tasks.recall import Recall
from studfinder.training.tasks.task import TOY_TASKS, Example, ToyTask, task_from, word_tokenizer

__all__ = [
    "TOY_TASKS",
    "Backcopy",
    "Example",
    "HopK",
    "Induction",
    "NGram",
    "Recall",
    "ToyTask",
    "task_from",
    "word_tokenizer",
]

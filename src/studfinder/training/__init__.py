"""Training on transformers.Trainer: toy tasks, texts, recipes, and outliers watched on the way."""

from studfinder.training.fit import Fitted, fit
from studfinder.training.models import Shape, build, put_in, variants_from
from studfinder.training.outliers import Look, Outliers, look
from studfinder.training.presets import PRESETS, Preset, preset
from studfinder.training.recipe import Recipe
from studfinder.training.streams import TaskSource
from studfinder.training.tasks import TASKS, Task, task_from
from studfinder.training.text import TextSource, tokenized

__all__ = [
    "PRESETS",
    "TASKS",
    "Fitted",
    "Look",
    "Outliers",
    "Preset",
    "Recipe",
    "Shape",
    "Task",
    "TaskSource",
    "TextSource",
    "build",
    "fit",
    "look",
    "preset",
    "put_in",
    "task_from",
    "tokenized",
    "variants_from",
]

"""Training on transformers.Trainer: toy tasks, texts, recipes, and outliers watched on the way."""

from studfinder.records.public import public
from studfinder.training.fit import Fitted, fit
from studfinder.training.models import ModelShape, build_model, put_in, variants_from
from studfinder.training.outliers import Look, OutlierCallback, look
from studfinder.training.presets import PRESETS, Preset, preset
from studfinder.training.recipe import TrainingRecipe
from studfinder.training.streams import TaskSource
from studfinder.training.tasks import TOY_TASKS, ToyTask, task_from
from studfinder.training.text import TextSource, tokenized

__all__ = [
    "PRESETS",
    "TOY_TASKS",
    "Fitted",
    "Look",
    "ModelShape",
    "OutlierCallback",
    "Preset",
    "TaskSource",
    "TextSource",
    "ToyTask",
    "TrainingRecipe",
    "build_model",
    "fit",
    "look",
    "preset",
    "put_in",
    "task_from",
    "tokenized",
    "variants_from",
]

public(globals())

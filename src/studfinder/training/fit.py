"""fit: train a model on a source with transformers.Trainer, evaluate it on the way, and resume exactly."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Trainer, TrainingArguments

from studfinder.attention import parameter_groups
from studfinder.records import Interval
from studfinder.stats import ratio_interval
from studfinder.training.checkpoints import Checkpoints, latest, remove_half
from studfinder.training.disk import writing
from studfinder.training.interrupt import StopAtStep
from studfinder.training.recipe import TrainingRecipe
from studfinder.training.streams import SequenceRows, SequenceSource, collate
from studfinder.training.tasks.task import IGNORED

_TIMES = ("_runtime", "_per_second")
_SCHEDULES = {
    "constant": "constant_with_warmup",
    "cosine": "cosine",
    "linear": "linear",
    "cool-down": "warmup_stable_decay",
}


@dataclass(frozen=True)
class Fitted:
    """What came of a training run.

    Attributes:
        model: trained, in eval mode.
        log: Trainer's log: dicts with "step" and what was measured then. Without what depends on the clock or on where
            the run was interrupted, so that a run that was resumed has the same log as one that never stopped.
        last: the last evaluation's "loss" and "accuracy".
        items_N3: of that evaluation, for each test sequence: right answers, scored labels, their nats.
        stopped: why it ended early ("interrupted", "diverged"), or None.
        weights: the whole state dict (of the first process) where the model is sharded over processes, or None.
    """

    model: Any
    log: list[dict[str, Any]]
    last: dict[str, Any]
    items_N3: np.ndarray
    stopped: str | None = None
    weights: dict[str, torch.Tensor] | None = None

    @property
    def accuracy(self) -> Interval:
        """Share of right answers, resampling test sequences."""
        return self._interval(0)

    @property
    def loss(self) -> Interval:
        """Nats a scored label, resampling test sequences."""
        return self._interval(2)

    def _interval(self, column: int) -> Interval:
        if not len(self.items_N3):  # it ended before its first evaluation
            nan = float("nan")
            return Interval(value=nan, low=nan, high=nan, level=0.95, n=0, method="nothing was evaluated")
        return ratio_interval(self.items_N3[:, column], self.items_N3[:, 1], what="test sequences")

    def curve(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of everything logged under a name, e.g. "eval_accuracy"."""
        return [(entry["step"], entry[name]) for entry in self.log if name in entry]


def fit(
    model: Any,
    source: SequenceSource,
    recipe: TrainingRecipe,
    *,
    folder: Path | None = None,
    key: str = "",
    callbacks: Sequence[Any] = (),
    report_to: Sequence[str] = (),
) -> Fitted:
    """Train a model in place.

    Args:
        model: a Hugging Face causal LM, fp32.
        source: where sequences come from.
        folder: for checkpoints; the run continues from the last complete one there. None keeps none.
        key: which run the checkpoints belong to; those of another, or of other data, are refused.
        callbacks: Trainer callbacks; one with `attach(trainer)` is handed the Trainer.
        report_to: Trainer's integrations, e.g. "tensorboard", which write into `folder`.

    Raises:
        StudfinderError: checkpoints of another run, a full disk, a batch that does not divide.
    """
    # Before the Trainer, whose TrainingArguments create the process group if there are several processes.
    with nullcontext(folder) if folder is not None else tempfile.TemporaryDirectory(prefix="studfinder-") as named:
        place = Path(named)
        start = latest(place, key, source.settings()) if folder is not None else None
        arguments = _arguments(recipe, place, save=folder is not None, report_to=report_to)
        stop = StopAtStep(save=folder is not None)
        checkpoints = Checkpoints(key, source.settings())
        trainer = _Trainer(
            model=model,
            args=arguments,
            decay_norms=recipe.decay_norms,
            data_collator=collate,
            train_dataset=SequenceRows(source, "train", recipe.seed, recipe.steps * recipe.batch),
            eval_dataset=SequenceRows(source, "test", recipe.seed, recipe.test),
            preprocess_logits_for_metrics=_score,
            callbacks=[checkpoints, stop, *callbacks],
        )
        _quiet(trainer)
        for callback in (checkpoints, *callbacks):
            if hasattr(callback, "attach"):
                callback.attach(trainer)
        with stop.listening():
            with writing("a checkpoint", place, clean=partial(remove_half, place)):
                trainer.train(resume_from_checkpoint=None if start is None else str(start))
        if stop.asked is None and not len(trainer.items_N3):
            _last_evaluation(trainer, recipe.steps)
        # Gathered by all processes together; each holds a part of every matrix only.
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) if trainer.is_fsdp_enabled else None
        trained = _without_autocast(trainer.model.eval())
        log = _measured(trainer.state.log_history)
        return Fitted(trained, log, trainer.last, trainer.items_N3, stop.asked, weights)


def _measured(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A log without its times, and without the summary at its end, whose mean loss is over the steps since resuming."""
    kept = [entry for entry in history if "train_runtime" not in entry]
    return [{name: value for name, value in entry.items() if not name.endswith(_TIMES)} for entry in kept]


def _without_autocast(model: Any) -> Any:
    """Take off the forward that accelerate puts on for mixed precision, so that what is measured of a trained model is
    measured of the one that `save_pretrained` writes."""
    if "_original_forward" in model.__dict__:
        del model.forward, model._original_forward
    return model


def _last_evaluation(trainer: Any, steps: int) -> None:
    """Evaluate a run that was resumed at its very end; it may have been logged already."""
    kept = list(trainer.state.log_history)
    trainer.evaluate()
    if any("eval_loss" in entry and entry["step"] == steps for entry in kept):
        trainer.state.log_history = kept


def _arguments(recipe: TrainingRecipe, place: Path, *, save: bool, report_to: Sequence[str]) -> TrainingArguments:
    if recipe.precision == "auto":
        raise ValueError("the precision is settled before training, so that a run is the same wherever it resumes")
    cuda = torch.cuda.is_available()
    decay = {"num_decay_steps": recipe.steps // 4, "decay_type": "linear"}
    arguments = TrainingArguments(
        output_dir=str(place),
        max_steps=recipe.steps,
        learning_rate=recipe.lr,
        lr_scheduler_type=_SCHEDULES[recipe.schedule],
        lr_scheduler_kwargs=decay if recipe.schedule == "cool-down" else None,
        warmup_steps=recipe.warmup,
        adam_beta1=recipe.beta1,
        adam_beta2=recipe.beta2,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.clip,
        bf16=recipe.precision == "bf16",
        logging_strategy="steps",
        logging_steps=max(1, recipe.look // 4),
        logging_nan_inf_filter=False,  # it would show an average in place of a loss that is not finite
        eval_strategy="steps",
        eval_steps=recipe.look,
        save_strategy="steps" if save else "no",
        save_steps=recipe.keep,
        save_total_limit=2,
        seed=recipe.seed,
        train_sampling_strategy="sequential",  # a source's rows are shuffled already
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=list(report_to) or "none",
        use_cpu=not cuda,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=cuda,
    )
    micro = recipe.micro_batch(arguments.world_size)
    arguments.per_device_train_batch_size = arguments.per_device_eval_batch_size = micro
    arguments.gradient_accumulation_steps = recipe.batch // (micro * arguments.world_size)
    return arguments


def _quiet(trainer: Any) -> None:
    from transformers.trainer_callback import PrinterCallback
    from transformers.utils import logging

    logging.disable_progress_bar()  # one for each checkpoint that is written
    trainer.remove_callback(PrinterCallback)


class _Trainer(Trainer):
    """Trainer with our optimizer groups, exact test scores, and no per-step arithmetic that nobody reads."""

    def __init__(self, *, decay_norms: bool, **options: Any) -> None:
        super().__init__(**options)
        self.decay_norms = decay_norms
        self.optimizer: Any
        self.last: dict[str, Any] = {}
        self.items_N3 = np.zeros((0, 3))
        self.compute_metrics = self._metrics

    def _metrics(self, prediction: Any) -> dict[str, float]:
        """Over all scored labels, where Trainer's own loss is a mean of batches' means."""
        self.items_N3 = np.asarray(prediction.predictions)
        right, scored, nats = self.items_N3.sum(axis=0)
        if not scored:
            return {"loss": math.nan, "accuracy": math.nan}
        return {"loss": float(nats / scored), "accuracy": float(right / scored)}

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            model = self.model if model is None else model
            groups = parameter_groups(model, self.args.weight_decay)
            if self.decay_norms:
                groups = _with_norms(model, groups)
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = kind([group for group in groups if group["params"]], **options)
        return self.optimizer

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # Trainer counts every parameter anew at each step

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        found = super().evaluate(*arguments, **options)
        self.last = {name.removeprefix("eval_"): value for name, value in found.items()}
        return found


def _with_norms(model: Any, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups with the gains of norms among the decayed."""
    norms = {
        id(module.weight)
        for module in model.modules()
        if "norm" in type(module).__name__.lower() and getattr(module, "weight", None) is not None
    }
    decayed, kept = groups
    moved = [parameter for parameter in kept["params"] if id(parameter) in norms]
    return [
        {**decayed, "params": decayed["params"] + moved},
        {**kept, "params": [parameter for parameter in kept["params"] if id(parameter) not in norms]},
    ]


@torch.no_grad()
def _score(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """What is kept of a batch of logits: right answers, scored labels and their nats, (B, 3) in fp64."""
    logits_BTV = logits_BTV[0] if isinstance(logits_BTV, tuple) else logits_BTV
    logits, labels = logits_BTV[:, :-1].float(), labels_BT[:, 1:]
    scored = labels != IGNORED
    nats = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
    right = (logits.argmax(dim=-1) == labels) & scored
    return torch.stack([right.sum(1).double(), scored.sum(1).double(), nats.view_as(right).double().sum(1)], dim=1)

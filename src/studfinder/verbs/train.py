"""train: a model from scratch, or a trained one further, on a toy task or a text, with its outliers watched."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from studfinder.attention import Variant
from studfinder.errors import StudfinderError
from studfinder.models import load
from studfinder.records import RunCard, read_record, to_json
from studfinder.runs import RunFolder, now, open_run, versions, write_text
from studfinder.training import (
    Fitted,
    Outliers,
    Preset,
    Recipe,
    Shape,
    Task,
    TaskSource,
    Training,
    build,
    fit,
    preset,
    put_in,
    task_from,
    tokenized,
    variants_from,
)
from studfinder.training.estimate import Estimate, estimate, estimate_of, faster_precision
from studfinder.training.screen import LiveLine
from studfinder.training.streams import Source
from studfinder.training.tasks import word_tokenizer
from studfinder.training.text import documents, fingerprint

TASK_PRESET = Preset(shape=Shape(), recipe=Recipe(), length=0, vocabulary=None)
"""A small model for toy tasks: two layers of width 64."""
GO_ON = Preset(
    shape=Shape(), recipe=Recipe(steps=2000, batch=8, lr=5e-5, schedule="cosine"), length=512, vocabulary=None
)
"""The recipe for a trained model, whose shape is its own."""


@dataclass(frozen=True)
class TrainPlan:
    """Everything that determines a training run, worked out before it starts.

    Attributes:
        name: of the model, for the folder.
        shape: of a model from scratch; None with `base`.
        base: a trained model to go on with.
        variants: of attention, put in one after the other.
        task, text: what it is trained on; one of the two.
        length, vocabulary: of a sequence, and of the tokenizer made in place (None: bytes).
        apart: keep packed documents from seeing each other.
        estimate: what it will take.
        settings: all of the above, flat.
    """

    name: str
    recipe: Recipe
    variants: tuple[Variant, ...]
    length: int
    shape: Shape | None = None
    base: str | None = None
    task: Task | None = None
    text: str | None = None
    vocabulary: int | None = None
    apart: bool = False
    estimate: Estimate | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def plan_train(
    *,
    task: Task | str | None = None,
    text: str | None = None,
    base: str | None = None,
    preset_name: str | None = None,
    attention: Sequence[str] | None = None,
    shape: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
    length: int | None = None,
    vocabulary: int | None = None,
    apart: bool = False,
) -> TrainPlan:
    """Settle a run.

    Args:
        task: a toy task, or its name and settings ("induction:length=64").
        text: a text, see `training.text.documents`. One of task and text.
        base: a trained model to go on with, by name or folder; its tokenizer and sizes are kept.
        preset_name: one of `PRESETS`; the default is "toy" for text from scratch, and for a trained model 2,000
            gentle steps of 8 windows of 512 tokens.
        attention: variants by name, e.g. ["kv_shift", "gated:kind=linear"]; None is the preset's, [] is none.
        shape, recipe: fields of `Shape` and `Recipe` that differ from the preset's.
        length, vocabulary: of windows of text and of the tokenizer, if not the preset's.
        apart: keep packed documents from seeing each other.

    Raises:
        StudfinderError: an unknown name, settings that do not fit, no text.
    """
    task = task_from(task) if isinstance(task, str) else task
    if (task is None) == (text is None):
        raise StudfinderError("nothing to train on" if text is None else "a task and a text", expected="one of the two")
    default = GO_ON if base else TASK_PRESET if task is not None else preset("toy")
    chosen = preset(preset_name) if preset_name else default
    sizes = replace(chosen.shape, **(shape or {}))
    course = replace(chosen.recipe, **(recipe or {}))
    if course.precision == "auto":
        course = replace(course, precision=faster_precision(sizes.hidden))  # type: ignore[arg-type]
    words = tuple(chosen.attention if attention is None else attention)
    plan = TrainPlan(
        name=base or preset_name or (task.name if task is not None else "toy"),
        recipe=course,
        variants=tuple(variants_from(words)),
        length=task.length if task is not None else length or chosen.length,
        shape=None if base else sizes,
        base=base,
        task=task,
        text=text,
        vocabulary=None if base else vocabulary or chosen.vocabulary,
        apart=apart,
    )
    _check(plan, shape, length, vocabulary)
    return replace(plan, estimate=_estimate(plan), settings=_settings(plan, words))


def _check(plan: TrainPlan, shape: Any, length: int | None, vocabulary: int | None) -> None:
    if plan.base and (shape or vocabulary):
        raise StudfinderError(
            f"the sizes of {plan.base} are what they are", do="Leave layers, width and vocabulary out"
        )
    if plan.task is not None and (length or vocabulary):
        raise StudfinderError(
            "a task has its own length and vocabulary", do=f"Say --task {plan.task.name}:length=...,vocabulary=..."
        )
    if plan.base and plan.task is not None:
        raise StudfinderError("a toy task has token ids of its own", expected="a model from scratch, or a text")
    plan.recipe.micro_batch(_processes())
    if plan.text is not None:
        next(documents(plan.text))  # said before anything is made for nothing


def _estimate(plan: TrainPlan) -> Estimate:
    if plan.base is not None:
        model = load(plan.base).model
        config = model.config.get_text_config(decoder=True)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        layers, hidden, vocabulary = config.num_hidden_layers, config.hidden_size, config.vocab_size
        return estimate_of(parameters, layers, hidden, plan.recipe, vocabulary, plan.length, _processes())
    assert plan.shape is not None
    vocabulary = plan.task.vocabulary if plan.task is not None else plan.vocabulary or 257
    return estimate(
        plan.shape,
        plan.variants,
        plan.recipe,
        vocabulary=vocabulary,
        length=plan.length,
        devices=_processes(),
    )


def _settings(plan: TrainPlan, attention: Sequence[str]) -> dict[str, Any]:
    data = plan.task.to_dict() if plan.task is not None else {"text": plan.text, "text_print": fingerprint(plan.text)}
    model = {"base": plan.base} if plan.shape is None else plan.shape.to_dict()
    return {
        **{f"data_{name}": value for name, value in data.items()},
        "length": plan.length,
        "vocabulary": plan.vocabulary,
        "apart": plan.apart,
        **{f"model_{name}": value for name, value in model.items()},
        "attention": " ".join(attention),
        **plan.recipe.to_dict(),
    }


def run_train(
    plan: TrainPlan,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    tensorboard: bool | None = None,
    quiet: bool = False,
    command: str = "",
    progress: Callable[[int], Any] | None = None,
) -> tuple[Training, Path]:
    """Carry out a planned run, or go on with it where it was interrupted; a finished one is read, not run again.

    The folder holds run.json, checkpoints/, outliers.jsonl, model/ (for transformers, `scan` and `measure`),
    prompts.jsonl (test sequences of a task, as text) and, last, result.json.

    Args:
        out: the folder; the default is runs/<name>/train-<key>.
        overwrite: replace what is there.
        tensorboard: write its files; None does so if it is installed.
        quiet: no line on the terminal.
        progress: told how many tokens of the text are ready.

    Raises:
        StudfinderError: `out` holds another run, a text that is too short, a full disk.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is written.
    """
    reports = ["tensorboard"] if _tensorboard(tensorboard) else []
    started, begun = now(), time.monotonic()
    with _first_process_first():
        folder = _opened(plan, out, overwrite)
        if folder.complete:
            return read_record(Training, folder.path / folder.result), folder.path
        source, tokenizer = _source(plan, folder.path, progress)
    model = _model(plan, source, tokenizer)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    outliers = Outliers(source, file=folder.path / "outliers.jsonl")
    fitted = fit(
        model,
        source,
        plan.recipe,
        folder=folder.path / "checkpoints",
        key=folder.key,
        callbacks=[outliers] if quiet else [outliers, LiveLine()],
        report_to=reports,
    )
    if fitted.stopped == "interrupted":
        raise KeyboardInterrupt
    record = Training(
        run=RunCard(
            verb="train",
            key=folder.key,
            settings=json.loads(json.dumps(plan.settings, default=str)),
            command=command,
            started=started,
            seconds=time.monotonic() - begun,
            device="cuda" if torch.cuda.is_available() else "cpu",
            seed=plan.recipe.seed,
            versions=versions(),
        ),
        parameters=parameters,
        tokens=plan.recipe.steps * plan.recipe.batch * plan.length,
        loss=fitted.loss,
        accuracy=fitted.accuracy,
        log=tuple({name: value for name, value in entry.items() if _number(value)} for entry in fitted.log),
        diverged=fitted.stopped == "diverged",
        processes=_processes(),
    )
    if int(os.environ.get("RANK", 0)) == 0:
        _export(fitted, source, tokenizer, folder.path)
        write_text(folder.path / folder.result, to_json(record, indent=1))  # last: it marks the run as complete
    return record, folder.path


def train(
    *, out: str | Path | None = None, overwrite: bool = False, tensorboard: bool | None = None, **plan: Any
) -> tuple[Training, Path]:
    """Train a model; the arguments are those of `plan_train`. Returns the record and the run folder.

    `sf.load(folder / "model")` loads what was trained.
    """
    return run_train(
        plan_train(**plan),
        out=None if out is None else Path(out),
        overwrite=overwrite,
        tensorboard=tensorboard,
        command="sf.train(...)",
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float)


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def _first_process_first() -> Iterator[None]:
    """With several processes, let the first make the files that the others read."""
    if _processes() == 1:
        yield
        return
    from accelerate import PartialState

    with PartialState(cpu=not torch.cuda.is_available()).main_process_first():
        yield


def _tensorboard(wanted: bool | None) -> bool:
    installed = find_spec("tensorboard") is not None
    if wanted and not installed:
        raise StudfinderError("tensorboard is not installed", do='pip install "studfinder[train]"')
    return installed if wanted is None else wanted


def _opened(plan: TrainPlan, out: Path | None, overwrite: bool) -> RunFolder:
    options: dict[str, Any] = {"result": "result.json", "out": out, "overwrite": overwrite}
    folder = open_run("train", plan.name, plan.settings, **options)
    if overwrite and int(os.environ.get("RANK", 0)) == 0 and any(folder.path.iterdir()):
        shutil.rmtree(folder.path)
        folder = open_run("train", plan.name, plan.settings, **options)
    return folder


def _source(plan: TrainPlan, folder: Path, progress: Callable[[int], Any] | None) -> tuple[Source, Any]:
    if plan.task is not None:
        return TaskSource(plan.task), word_tokenizer(plan.task.vocabulary)
    assert plan.text is not None
    tokenizer = None
    if plan.base is not None:
        tokenizer = load(plan.base).tokenizer
        if tokenizer is None:
            raise StudfinderError(f"{plan.base} has no tokenizer", expected="one, to train it on text")
    needed = plan.recipe.steps * plan.recipe.batch * plan.length
    source, tokenizer = tokenized(
        plan.text,
        plan.length,
        plan.vocabulary,
        folder=folder,
        apart=plan.apart,
        tokenizer=tokenizer,
        limit=int(needed * 1.06) + 2 * plan.length,
        progress=progress,
    )
    if source.train_windows < plan.recipe.batch:
        raise StudfinderError(
            f"text {plan.text!r} has {len(source.tokens_N):,} tokens, shorter than a batch",
            expected=f"{plan.recipe.batch} windows of {plan.length} tokens, and some to test on",
            do="Give it more text, or a smaller --batch or --length",
        )
    return source, tokenizer


def _model(plan: TrainPlan, source: Source, tokenizer: Any) -> Any:
    if plan.shape is None:
        assert plan.base is not None
        model = load(plan.base, dtype="float32").model
        torch.manual_seed(plan.recipe.seed)  # for the parts that variants add
        return put_in(model, plan.variants, trained=True)
    return build(plan.shape, plan.variants, vocabulary=len(tokenizer), length=source.length, seed=plan.recipe.seed)


def _export(fitted: Fitted, source: Source, tokenizer: Any, folder: Path) -> None:
    """The trained model and its tokenizer, under a temporary name first."""
    half, whole = folder / ".model", folder / "model"
    fitted.model.config.use_cache = True
    try:
        shutil.rmtree(half, ignore_errors=True)
        fitted.model.save_pretrained(half)
        tokenizer.save_pretrained(half)
        shutil.rmtree(whole, ignore_errors=True)
        half.rename(whole)
    except OSError as error:
        shutil.rmtree(half, ignore_errors=True)
        raise StudfinderError(
            f"the model cannot be written to {whole} ({error.strerror or error})",
            do="Free some space and run the same command again: it continues from the last checkpoint",
        ) from None
    if isinstance(source, TaskSource):
        rows = [source.row("test", 0, index)["input_ids"].tolist() for index in range(8)]
        lines = [json.dumps({"text": " ".join(map(str, row))}) for row in rows]
        write_text(folder / "prompts.jsonl", "\n".join(lines) + "\n")

"""train: a model from scratch, or a trained one further, on a toy task or a text, with its outliers watched."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from studfinder.errors import StudfinderError
from studfinder.models import load
from studfinder.models.beside import carry
from studfinder.records import RunCard, read_record, to_json
from studfinder.runs import RunFolder, now, open_run, versions, write_text
from studfinder.training import Fitted, Outliers, TaskSource, Training, build, fit, put_in, tokenized
from studfinder.training.disk import writing
from studfinder.training.screen import LiveLine
from studfinder.training.streams import Source
from studfinder.training.tasks import word_tokenizer
from studfinder.verbs.train_plan import TrainPlan, plan_train, processes

_PATIENCE = timedelta(days=7)
"""How long processes wait for the first one to tokenize a text."""
__all__ = ["TrainPlan", "plan_train", "run_train", "train"]


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
        with _prepared(folder):
            model = _trained(plan)  # first: whether it takes the variants is known sooner than the text is tokenized
            source, tokenizer = _source(plan, folder.path, progress)
    if model is None:
        assert plan.shape is not None
        vocabulary = len(tokenizer)
        model = build(plan.shape, plan.variants, vocabulary=vocabulary, length=source.length, seed=plan.recipe.seed)
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
        processes=processes(),
    )
    if int(os.environ.get("RANK", 0)) == 0:
        _export(fitted, source, tokenizer, folder.path, plan.base)
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


@contextmanager
def _first_process_first() -> Iterator[None]:
    """With several processes, let the first make the files that the others read."""
    if processes() == 1:
        yield
        return
    from accelerate import PartialState

    first = PartialState(cpu=not torch.cuda.is_available()).is_main_process
    # A group of its own to wait in: a collective of the usual one gives up after minutes, and a long text takes hours.
    waiting = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
    if not first:
        torch.distributed.barrier(waiting)
    yield
    if first:
        torch.distributed.barrier(waiting)


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


@contextmanager
def _prepared(folder: RunFolder) -> Iterator[None]:
    """Around what is made before the training. Of input that turns out bad nothing stays: the same `out` is free for
    the corrected command, and what another run of the same settings has made is kept."""
    made = [file for name in ("tokens.npy", "tokenizer.json") if not (file := folder.path / name).exists()]
    with folder.held():
        try:
            yield
        except StudfinderError:
            for file in made:
                file.unlink(missing_ok=True)
            raise


def _source(plan: TrainPlan, folder: Path, progress: Callable[[int], Any] | None) -> tuple[Source, Any]:
    if plan.task is not None:
        return TaskSource(plan.task), word_tokenizer(plan.task.vocabulary)
    assert plan.text is not None
    tokenizer = None if plan.base is None else load(plan.base).tokenizer
    source, tokenizer = tokenized(
        plan.text,
        plan.length,
        plan.vocabulary,
        folder=folder,
        apart=plan.apart,
        tokenizer=tokenizer,
        limit=plan.text_tokens,
        progress=progress,
    )
    if source.train_windows < plan.recipe.batch:
        raise StudfinderError(
            f"text {plan.text!r} has {len(source.tokens_N):,} tokens, shorter than a batch",
            expected=f"{plan.recipe.batch} windows of {plan.length} tokens, and some to test on",
            do="Give it more text, or a smaller --batch or --length",
        )
    return source, tokenizer


def _trained(plan: TrainPlan) -> Any:
    """The trained model to go on with, fp32, with its variants; None where the run makes its own."""
    if plan.base is None:
        return None
    model = load(plan.base, dtype="float32").model
    torch.manual_seed(plan.recipe.seed)  # for the parts that variants add
    return put_in(model, plan.variants, trained=True)


def _export(fitted: Fitted, source: Source, tokenizer: Any, folder: Path, base: str | None) -> None:
    """The trained model, its tokenizer and what lay beside its base, under a temporary name first."""
    half, whole = folder / ".model", folder / "model"
    fitted.model.config.use_cache = True
    clean = partial(shutil.rmtree, half, ignore_errors=True)
    clean()
    with writing("the model", whole, clean=clean):
        fitted.model.save_pretrained(half, state_dict=fitted.weights)
        if base is not None:
            carry(base, half, tokenizer=False)
        tokenizer.save_pretrained(half)
        shutil.rmtree(whole, ignore_errors=True)
        half.rename(whole)
    if isinstance(source, TaskSource):
        rows = [source.row("test", 0, index)["input_ids"].tolist() for index in range(8)]
        lines = [json.dumps({"text": " ".join(map(str, row))}) for row in rows]
        write_text(folder / "prompts.jsonl", "\n".join(lines) + "\n")

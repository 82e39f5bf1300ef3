"""train: a model from scratch, or a trained one further, on a toy task or a text, with its outliers watched."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from studfinder.errors import StudfinderError
from studfinder.models import LM, cached_content_hash, config_hash
from studfinder.models.beside import put_beside
from studfinder.models.fingerprint import file_hash
from studfinder.records import RunCard, Training, to_json
from studfinder.records.config import makes
from studfinder.report.training import training_sheet
from studfinder.runs import SCORING, Run, Work, first_process, now, process_count, read, run_of, versions, write_text
from studfinder.training import Fitted, OutlierCallback, TaskSource, build_model, fit, put_in, tokenized
from studfinder.training.disk import writing
from studfinder.training.screen import LiveLine
from studfinder.training.streams import SequenceSource
from studfinder.training.tasks import word_tokenizer
from studfinder.verbs.configs import TrainConfig
from studfinder.verbs.results import write_sheet
from studfinder.verbs.train_plan import TrainPlan, base_model, plan_train

_TEXT = ("tokens.npy", "tokenizer.json")
_PATIENCE = timedelta(days=7)
"""How long processes wait for the first one to tokenize a text."""
__all__ = ["TrainPlan", "plan_train", "run_train", "train"]


def run_train(plan: TrainPlan, command: str = "") -> tuple[Training, Path]:
    """Carry out a planned run, or go on with it where it was interrupted; a finished one is read, not run again.

    The folder holds run.json, checkpoints/, outliers.jsonl, model/ (for transformers, `scan` and `measure`),
    prompts.jsonl (test sequences of a task, as text) and result.json. While it trains it is called NAME.partial.

    Raises:
        StudfinderError: `out` holds another run, a text that is too short, a full disk.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is written.
    """
    config = plan.config
    reports = ["tensorboard"] if _tensorboard(config.tensorboard) else []
    started, begun = now(), time.monotonic()
    base = None if config.base is None else base_model(config, "float32")
    run = _run(plan, base)
    found = None if config.overwrite else run.finished()
    if found is not None:
        return read(found, Training), found
    sources = [config.text, None if base is None else base.source.folder]
    with run.work(overwrite=config.overwrite, sources=sources) as work:
        with _first_process_first():
            # The model first: whether it takes the variants is known sooner than the text is tokenized.
            model = None if base is None else _varied(plan, base)
            source, tokenizer = _source(plan, base, work)
        if model is None:
            assert plan.shape is not None
            size = {"vocabulary": len(tokenizer), "length": source.length}
            model = build_model(plan.shape, plan.variants, **size, seed=plan.recipe.seed)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        fitted = _fitted(plan, run, work, model, source, reports)
        record = _record(plan, run, fitted, parameters, command=command, started=started, begun=begun)
        if first_process():
            _export(fitted, source, tokenizer, work.path, config.base)
            write_text(work.path / run.result, to_json(record, indent=1))
            write_sheet(work.path, training_sheet(record))
    return record, run.path


def _run(plan: TrainPlan, base: LM | None) -> Run:
    """The run's identity: its settings, the weights it starts from, and the kind of device."""
    identity = {
        **plan.settings,
        "base_hash": "" if base is None else cached_content_hash(base),
        "base_config": "" if base is None else config_hash(base),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "scoring": SCORING,
    }
    return run_of("train", plan.name, identity, result="result.json", out=plan.config.folder, before=plan.settings)


def _fitted(plan: TrainPlan, run: Run, work: Work, model: Any, source: SequenceSource, reports: list[str]) -> Fitted:
    place = work.path / "checkpoints"
    outliers = OutlierCallback(source, file=work.path / "outliers.jsonl")
    try:
        fitted = fit(
            model,
            source,
            plan.recipe,
            folder=place,
            key=run.key,
            callbacks=[outliers] if plan.config.quiet else [outliers, LiveLine()],
            report_to=reports,
        )
        if fitted.stopped == "interrupted":
            raise KeyboardInterrupt
    except BaseException:
        if any(place.glob("checkpoint-*")):  # to go on from
            work.keep()
        raise
    return fitted


def _record(
    plan: TrainPlan, run: Run, fitted: Fitted, parameters: int, *, command: str, started: str, begun: float
) -> Training:
    source = {"data_source": plan.source} if plan.source else {}
    return Training(
        run=RunCard(
            verb="train",
            key=run.key,
            settings=json.loads(json.dumps(plan.settings | source, default=str)),
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
        processes=process_count(),
    )


@makes(TrainConfig)
def train(config: TrainConfig) -> tuple[Training, Path]:
    """Train a model, from scratch or a trained one further, on a toy task or a text.

    Args:
        config: how; or its fields as keywords.

    Returns the record and the run folder; `sf.load(folder / "model")` loads what was trained. Raises as `plan_train`
    and `run_train`.
    """
    return run_train(plan_train(config), command="sf.train(...)")


def _number(value: Any) -> bool:
    return isinstance(value, int | float)


@contextmanager
def _first_process_first() -> Iterator[None]:
    """With several processes, let the first make the files that the others read."""
    if process_count() == 1:
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


def _source(plan: TrainPlan, base: LM | None, work: Work) -> tuple[SequenceSource, Any]:
    if plan.task is not None:
        return TaskSource(plan.task), word_tokenizer(plan.task.vocabulary)
    text, progress = plan.config.text, plan.config.progress
    assert text is not None
    _check_text(work)
    source, tokenizer = tokenized(
        text,
        plan.length,
        plan.vocabulary,
        folder=work.path,
        apart=plan.config.apart,
        lm=base,
        limit=plan.text_tokens,
        repeat=plan.config.repeat or 0,
        test_text=plan.config.test_text,
        progress=lambda done: progress("tokenize", done, plan.text_tokens),
    )
    if source.train_windows < plan.recipe.batch:
        raise StudfinderError(
            f"text {text!r} has {len(source.tokens_N):,} tokens, shorter than a batch",
            expected=f"{plan.recipe.batch} windows of {plan.length} tokens, and some to test on",
            do="Give it more text, or a smaller --batch or --length",
        )
    work.steps.once("text", lambda: {name: _hash(work.path / name) for name in _TEXT})
    return source, tokenizer


def _check_text(work: Work) -> None:
    """What an interrupted run has tokenized is used again only if it is as it was written."""
    for name, digest in work.steps.values.get("text", {}).items():
        if digest != _hash(work.path / name):
            raise StudfinderError(
                f"{work.path / name} is not as it was written, so training on would end with other weights",
                do=f"Remove {work.path} and train anew",
            )


def _hash(path: Path) -> str:
    return file_hash(path) if path.is_file() else ""


def _varied(plan: TrainPlan, base: LM) -> Any:
    """The trained model to go on with, with its variants."""
    torch.manual_seed(plan.recipe.seed)  # for the parts that variants add
    return put_in(base.model, plan.variants, trained=True)


def _export(fitted: Fitted, source: SequenceSource, tokenizer: Any, folder: Path, base: str | None) -> None:
    """The trained model, its tokenizer and what lay beside its base, under a temporary name first."""
    half, whole = folder / ".model", folder / "model"
    fitted.model.config.use_cache = True
    clean = partial(shutil.rmtree, half, ignore_errors=True)
    clean()
    with writing("the model", whole, clean=clean):
        fitted.model.save_pretrained(half, state_dict=fitted.weights)
        if base is not None:
            put_beside(base, half, tokenizer=False)
        tokenizer.save_pretrained(half)
        shutil.rmtree(whole, ignore_errors=True)
        half.rename(whole)
    if isinstance(source, TaskSource):
        rows = [source.row("test", 0, index)["input_ids"].tolist() for index in range(8)]
        lines = [json.dumps({"text": " ".join(map(str, row))}) for row in rows]
        write_text(folder / "prompts.jsonl", "\n".join(lines) + "\n")

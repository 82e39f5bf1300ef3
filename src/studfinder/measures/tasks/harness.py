"""lm-eval's own task objects, filled with local, generated or the hub's documents, and run on a live model."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studfinder.errors import StudfinderError, Unavailable, in_a_line
from studfinder.measures.tasks.catalogue import Task, local_file, offline
from studfinder.records.outside import json_lines
from studfinder.texts import commit_of, said

_ADVICE = "Set STUDFINDER_DATA to a folder that holds {local}, or run where the hub can be reached"


@dataclass(frozen=True)
class Built:
    """A task ready to run.

    Attributes:
        harness: lm-eval's task object.
        name: its name there.
        source: where its documents came from, for print.
        size: how many documents it has.
    """

    harness: Any
    name: str
    source: str
    size: int


def build_task(
    name: str, task: Task, generated: Sequence[dict[str, Any]] = (), *, revision: str | None = None
) -> Built:
    """The task with its documents: generated ones if given, else those of STUDFINDER_DATA, else the hub's.

    Args:
        revision: the hub's documents at this branch, tag or commit, whatever STUDFINDER_DATA holds. The commit that is
            read becomes part of the source.

    Raises:
        StudfinderError: lm-eval is not installed, or the documents are nowhere to be had.
    """
    load = _loader(task)
    path = local_file(task) if revision is None else None
    spec: str | dict[str, Any]
    if generated:
        spec, source = _spec(name, task, list(generated)), "generated"
    elif path is not None:
        spec, source = _spec(name, task, _read(path, task)), "STUDFINDER_DATA"
    elif offline():
        raise _missing(name, task, OSError("HF_HUB_OFFLINE is set"))
    else:
        repository = task.hub.split(":")[0]
        commit = commit_of(repository, revision)
        pinned = commit or revision
        source = f"hub: {repository}{said(commit, revision)}"
        if not task.harness:
            spec = _spec(name, task, _from_hub(name, task, pinned))
        else:
            spec = {"dataset_kwargs": {"revision": pinned}} if pinned else task.harness
    with at_work():
        try:
            harness = load(spec)
            size = len(harness.eval_docs)
        except Exception as error:
            if source.startswith("hub"):
                raise _missing(name, task, error) from None
            raise StudfinderError(
                f"the documents of {name} ({path}) are not as lm-eval expects them ({in_a_line(error)})"
            ) from None
    version = harness.VERSION if harness.VERSION is not None else "?"
    shots = harness.config.num_fewshot or 0
    label = f"{source}; lm-eval {task.harness} {version}" if task.harness else f"{source}; ours"
    return Built(harness, harness.config.task, f"{label}, {shots}-shot", size)


def requests_hash(built: Built, indices: Sequence[int]) -> str:
    """A hash of every prompt and continuation that the task will ask, and of the documents with their right answers."""
    with at_work():
        built.harness.build_all_requests(samples=_some(built, indices), rank=0, world_size=1)
    asked = [(one.request_type, one.doc_id, one.arguments) for one in built.harness.instances]
    docs = [one.doc for one in built.harness.instances]
    text = json.dumps([asked, docs, built.harness.dump_config()["metric_list"]], default=str, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def evaluated(lm: Any, built: Built, indices: Sequence[int]) -> list[dict[str, Any]]:
    """What lm-eval logs of each document: its metrics, responses and target, one entry a document and filter."""
    from lm_eval.evaluator import evaluate

    with at_work():
        results = evaluate(
            lm,
            {"tasks": {built.name: built.harness}, "groups": {}, "group_map": {}},
            samples={built.name: _some(built, indices)},
            bootstrap_iters=0,
        )
    return results["samples"][built.name]


def _some(built: Built, indices: Sequence[int]) -> list[int] | None:
    """None for all: lm-eval looks each document up in the list of those that are asked for."""
    return None if len(indices) == built.size else list(indices)


def version() -> str:
    """lm-eval's version."""
    from importlib.metadata import version as installed

    return installed("lm_eval")


@contextlib.contextmanager
def at_work() -> Iterator[None]:
    """lm-eval with its progress bars and advice kept off the terminal (its errors still come), and with each prompt
    template compiled once: it compiles one several times a document, which takes longer than a short question."""
    from lm_eval.utils import env

    compiled = functools.cache(env.from_string)
    loggers = [logging.getLogger(name) for name in ("lm_eval", "huggingface_hub", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    env.from_string = compiled
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        del env.from_string
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _loader(task: Task) -> Any:
    """A function from a task's name or configuration to lm-eval's object of it. Only one folder is indexed: all of
    lm-eval's take seconds."""
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise Unavailable(
            "tasks are scored by lm-eval, which is not installed", do="pip install 'studfinder[evaluate]'"
        ) from None
    folder = Path(lm_eval.__file__).parent / "tasks" / (task.folder or task.harness)
    manager = TaskManager(include_path=str(folder) if task.harness else None, include_defaults=False)

    def load(spec: str | dict[str, Any]) -> Any:
        if isinstance(spec, dict) and task.harness:
            # A group is lm-eval's way to say "this task, but with ...".
            spec = {"group": "studfinder", "task": [{"task": task.harness, **spec}]}
        (found,) = manager.load(spec)["tasks"].values()
        return found

    return load


def _spec(name: str, task: Task, rows: list[dict[str, Any]]) -> dict[str, Any]:
    import datasets  # type: ignore[import-not-found,import-untyped,unused-ignore]

    def dataset(**_: Any) -> Any:
        return {task.split: datasets.Dataset.from_list(rows)}

    splits: dict[str, str | None] = {
        "training_split": None,
        "validation_split": None,
        "test_split": None,
        "fewshot_split": None,
    }
    splits[f"{task.split}_split"] = task.split
    if task.harness:
        return {"custom_dataset": dataset, **splits}
    return {"task": name, **task.config, "custom_dataset": dataset}


def _read(path: Path, task: Task) -> list[dict[str, Any]]:
    rows = []
    for number, row in json_lines(path, name="task file"):
        try:
            rows.append(task.rows(row))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise StudfinderError(f"{path} line {number} is not a document of this task ({error!r})") from None
    if not rows:
        raise StudfinderError(f"{path} is empty", expected="a document a line")
    return rows


def _from_hub(name: str, task: Task, revision: str | None) -> list[dict[str, Any]]:
    """Rows of a hub data set, named path:config:split, as documents of a task that lm-eval lacks."""
    assert task.from_hub is not None
    path, config, split = task.hub.split(":")
    try:
        from datasets import load_dataset  # type: ignore[import-not-found,import-untyped,unused-ignore]

        with at_work():
            return [task.from_hub(row) for row in load_dataset(path, config or None, split=split, revision=revision)]
    except Exception as error:
        raise _missing(name, task, error) from None


def _missing(name: str, task: Task, error: Exception) -> Unavailable:
    # Without the folder's own name: the message goes into tables that are shown to others.
    here = "STUDFINDER_DATA does not hold them" if "STUDFINDER_DATA" in os.environ else "STUDFINDER_DATA is not set"
    return Unavailable(
        f"task {name} has no documents: {here}, and the hub does not give {task.hub.split(':')[0]} "
        f"({in_a_line(error)})",
        do=_ADVICE.format(local=task.local),
    )

"""The tasks: what each is about, whose prompt and metric it has, and where its documents are."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from studfinder.measures.registry import Kind
from studfinder.measures.tasks import documents
from studfinder.measures.tasks.documents import Row


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task's entry.

    Attributes:
        kind: what it is about.
        summary: a line for `studfinder ls tasks`, with what differs from lm-eval's task where anything does.
        harness: lm-eval's name; its own prompt, choices and metric are used. Empty for a task that lm-eval lacks.
        folder: lm-eval's folder of task files that has it, where that has another name.
        config: for a task that lm-eval lacks: its whole configuration, in lm-eval's format.
        local: file inside STUDFINDER_DATA; empty if the documents are generated or only on the hub.
        rows: turns a line of that file into a document with the hub's field names.
        hub: the hub's data set; empty if it has none.
        from_hub: turns the hub's row into a document of `config`; lm-eval reads its own tasks' rows itself.
        split: the split that lm-eval scores.
        metric: lm-eval's metric and, after a comma, filter.
        labels: the answers are the same for every document, so that always giving the commonest one is a strategy.
    """

    kind: Kind
    summary: str
    harness: str = ""
    folder: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    local: str = ""
    rows: Callable[[Row], Row] = dict
    hub: str = ""
    from_hub: Callable[[Row], Row] | None = None
    split: str = "test"
    metric: str = "acc,none"
    labels: bool = False


def _labels(text: str, choices: list[str]) -> dict[str, Any]:
    return {
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": text,
        "doc_to_target": "label",
        "doc_to_choice": choices,
        "metric_list": [{"metric": "acc"}],
        "metadata": {"version": 1.0},
    }


ARITHMETIC: dict[str, Any] = {
    "output_type": "loglikelihood",
    "test_split": "test",
    "doc_to_text": "{{context}}",
    "doc_to_target": "{{completion}}",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}],
    "metadata": {"version": 1.0},
}

TASKS: dict[str, Task] = {
    "piqa": Task(
        kind="reasoning",
        summary="which of two solutions to an everyday physical problem",
        harness="piqa",
        local="choice/piqa.jsonl",
        rows=documents.piqa,
        hub="baber/piqa",
        split="validation",
    ),
    "arc_easy": Task(
        kind="memory",
        summary="school science, the easier questions",
        harness="arc_easy",
        folder="arc",
        local="choice/arc-easy.jsonl",
        rows=documents.arc,
        hub="allenai/ai2_arc",
    ),
    "arc_challenge": Task(
        kind="memory",
        summary="school science, the questions that word statistics do not answer",
        harness="arc_challenge",
        folder="arc",
        local="choice/arc-challenge.jsonl",
        rows=documents.arc,
        hub="allenai/ai2_arc",
    ),
    "hellaswag": Task(
        kind="reasoning",
        summary="which of four sentences goes on with a story",
        harness="hellaswag",
        local="choice/hellaswag.jsonl",
        hub="Rowan/hellaswag",
        split="validation",
    ),
    "winogrande": Task(
        kind="reasoning",
        summary="which of two nouns a pronoun-like gap stands for",
        harness="winogrande",
        local="choice/winogrande.jsonl",
        rows=documents.winogrande,
        hub="allenai/winogrande",
        split="validation",
    ),
    "lambada": Task(
        kind="context",
        summary="the last word of a passage, which only the whole passage gives away; right if greedy decoding has it",
        harness="lambada_openai",
        folder="lambada",
        local="lambada/lambada_test.jsonl",
        hub="EleutherAI/lambada_openai",
    ),
    "sciq": Task(
        kind="context",
        summary="science questions with the passage that answers them",
        harness="sciq",
        local="choice/sciq.jsonl",
        hub="allenai/sciq",
    ),
    "boolq": Task(
        kind="context",
        summary="yes or no, with the passage that says so",
        harness="boolq",
        folder="super_glue/boolq",
        local="choice/boolq.jsonl",
        hub="aps/super_glue",
        split="validation",
        labels=True,
    ),
    "boolq-nopassage": Task(
        kind="memory",
        summary="BoolQ's questions without their passages: another task than boolq, to be answered from the weights",
        config=_labels("Question: {{question}}?\nAnswer:", ["no", "yes"]),
        local="choice/boolq_nopassage.jsonl",
        rows=documents.boolq_without_passage,
        hub="aps/super_glue:boolq:validation",
        from_hub=documents.boolq_without_passage,
        labels=True,
    ),
    "openbookqa": Task(
        kind="memory",
        summary="elementary science facts applied to a situation",
        harness="openbookqa",
        local="choice/openbookqa.jsonl",
        rows=documents.openbookqa,
        hub="allenai/openbookqa",
    ),
    "gsm8k": Task(
        kind="reasoning",
        summary="word problems, worked out step by step; lm-eval's gsm8k_cot, whose 8 examples need no training split",
        harness="gsm8k_cot",
        folder="gsm8k",
        local="gsm8k/test.jsonl",
        hub="openai/gsm8k",
        metric="exact_match,flexible-extract",
    ),
    "aqua": Task(
        kind="reasoning",
        summary="algebra word problems with five answers; lm-eval's agieval_aqua_rat, its query rebuilt from the parts",
        harness="agieval_aqua_rat",
        folder="agieval",
        local="choice/aqua.jsonl",
        rows=documents.aqua,
        hub="hails/agieval-aqua-rat",
    ),
    "sentiment": Task(
        kind="context",
        summary="whether the end of a film review is positive; Pang and Lee's reviews, or IMDB's from the hub",
        config=_labels("Review: {{review}}\nSentiment:", ["negative", "positive"]),
        local="text/movie_reviews.jsonl",
        rows=documents.review,
        hub="stanfordnlp/imdb::test",
        from_hub=documents.review,
        labels=True,
    ),
    "arithmetic": Task(
        kind="reasoning",
        summary="sums after five examples, generated here; arithmetic:N adds numbers below N, else N is tuned",
        config=ARITHMETIC,
    ),
}

Availability = Literal["STUDFINDER_DATA", "hub", "generated", "not here"]


def local_file(task: Task) -> Path | None:
    """The task's documents inside STUDFINDER_DATA, if they are there."""
    folder = os.environ.get("STUDFINDER_DATA")
    path = Path(folder) / task.local if folder and task.local else None
    return path if path is not None and path.is_file() else None


def availability(name: str) -> Availability:
    """Where a run would take the task's documents from; "hub" needs network, which is not tried."""
    task = TASKS[name]
    if find_spec("lm_eval") is None:
        return "not here"
    if not task.local and not task.hub:
        return "generated"
    if local_file(task) is not None:
        return "STUDFINDER_DATA"
    return "hub" if task.hub and not offline() else "not here"


def offline() -> bool:
    """Whether the user has said that the hub is not to be asked."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))

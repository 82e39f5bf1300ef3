"""tasks(lm, "piqa"): a public benchmark on the live model, by item, with chance and headroom."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from studfinder.edits import Edit, edited, edits_of
from studfinder.errors import StudfinderError
from studfinder.measures.asked import Advance
from studfinder.measures.scores import Scores, scored
from studfinder.measures.tasks import arithmetic
from studfinder.measures.tasks.cache import model_state, remembered, score_key
from studfinder.measures.tasks.catalogue import TASKS, Task
from studfinder.measures.tasks.harness import Built, build_task, evaluated, requests_hash, version
from studfinder.models import LM
from studfinder.records.outside import whole_number
from studfinder.texts import split_revision
from studfinder.texts.encoding import tokenizer_of

_TUNING = 100


def tasks(
    lm: LM,
    name: str = "",
    *,
    limit: int | None = None,
    seed: int = 0,
    edits: Sequence[Edit] = (),
    progress: Advance | None = None,
) -> Scores:
    """A public task, with lm-eval's own prompt, choices and metric, on the model as it is now.

    Args:
        name: one of TASKS; "arithmetic:100" gives the difficulty, which otherwise is tuned on the clean model;
            "piqa@REVISION" has the hub's documents at that branch, tag or commit, whatever STUDFINDER_DATA holds.
        limit: at most so many documents, drawn at random; the default is all (200 sums of arithmetic).
        seed: of the draw.
        edits: applied while the task runs, and part of what its score is kept under. (Inside `with edited(...)` the
            task sees those edits too; but as nobody can tell what a hook does, scores are not kept there if any edit
            is one of activations.)
        progress: called with the number of requests done.

    Returns:
        Scores whose value is the accuracy. Items: "score" and "correct" (1 if right), where there are choices "margin"
        (log-probability of the right one minus that of the best wrong one, in nats) and "acc_norm" (right when
        log-probabilities are divided by the answers' lengths), for lambada "logprob" of the word. Details: "headroom"
        is 0 if the accuracy is not above guessing (or above always giving the commonest answer, "majority", where the
        answers are the same for all documents): such a task can show nothing.

    Raises:
        StudfinderError: no such task, lm-eval is not installed, its documents are nowhere to be had, the model has no
            tokenizer, or a limit below 1.
    """
    task, bound, revision = task_named(name)
    if limit is not None and limit < 1:
        raise StudfinderError(f"limit {limit}", expected="at least 1 document")
    tokenizer_of(lm)
    edits = edits_of(lm, edits) if edits else ()
    if task is TASKS["arithmetic"]:
        if bound is None:
            bound = _tuned(lm, seed)
        name = f"arithmetic:{bound}"
        rows = arithmetic.sums(bound, limit or arithmetic.DEFAULT_ITEMS, seed)
        return _run(lm, name, task, build_task("arithmetic", task, rows), None, seed, edits, progress)
    return _run(lm, name, task, build_task(name, task, revision=revision), limit, seed, edits, progress)


def headroom_note(scores: Scores) -> str:
    """What to say beside a task's score: empty, or that it can show nothing."""
    return "" if scores.details.get("headroom", 1.0) else "at chance: can show nothing"


def task_named(name: str) -> tuple[Task, int | None, str | None]:
    """A task by name, with the bound of arithmetic and the revision that its name holds. Raises StudfinderError."""
    unpinned, revision = split_revision(name)
    plain, colon, argument = unpinned.partition(":")
    if plain not in TASKS:
        raise StudfinderError(f"there is no task {plain!r}" if name else "no task", expected=", ".join(TASKS))
    if revision is not None and not TASKS[plain].hub:
        raise StudfinderError(f"task {name!r}", expected=f"{plain}, which is not of the hub and has no revisions")
    if not colon:
        return TASKS[plain], None, revision
    bound = whole_number(argument)
    if plain != "arithmetic" or bound is None:
        raise StudfinderError(f"task {name!r}", expected=plain + ":100" * (plain == "arithmetic"))
    return TASKS[plain], bound, None


def _tuned(lm: LM, seed: int) -> int:
    task = TASKS["arithmetic"]

    def accuracy(bound: int) -> float:
        rows = arithmetic.sums(bound, _TUNING, seed, for_tuning=True)
        return _run(lm, f"arithmetic:{bound} (tuning)", task, build_task("arithmetic", task, rows), None, seed).value

    return arithmetic.tuned_bound(lm, accuracy, lambda: model_state(lm) is not None)


def _run(
    lm: LM,
    name: str,
    task: Task,
    built: Built,
    limit: int | None,
    seed: int,
    edits: Sequence[Edit] = (),
    progress: Advance | None = None,
) -> Scores:
    indices = list(range(built.size))
    if limit is not None and limit < built.size:
        indices = sorted(np.random.default_rng(seed).choice(built.size, limit, replace=False).tolist())
    asked = requests_hash(built, indices)
    text = f"{name} ({built.source}) {asked[:12]}"
    settings = {"requests": asked, "text": text, "metric": task.metric, "limit": limit, "seed": seed}
    identity = hashlib.sha256(json.dumps({**settings, "lm_eval": version()}, sort_keys=True).encode()).hexdigest()

    def measure() -> Scores:
        from studfinder.measures.tasks.adapter import LiveLM

        with edited(lm, edits) if edits else nullcontext():
            samples = evaluated(LiveLM(lm, progress), built, indices)
        return _scores(name, task, built, samples, text)

    return remembered(score_key(lm, identity, edits), measure)


def _scores(name: str, task: Task, built: Built, samples: list[dict[str, Any]], text: str) -> Scores:
    metric, kept = task.metric.split(",")
    samples = [sample for sample in samples if sample["filter"] == kept]
    correct = [float(sample[metric]) for sample in samples]
    items: dict[str, Any] = {"correct": correct}
    if all("acc_norm" in sample for sample in samples):
        items["acc_norm"] = [float(sample["acc_norm"]) for sample in samples]
    chance = 0.0
    details: dict[str, float] = {}
    if built.harness.OUTPUT_TYPE == "multiple_choice":
        answers = [_answer(built, sample["doc"]) for sample in samples]
        logprobs = [[response[0] for response in sample["filtered_resps"]] for sample in samples]
        items["margin"] = [
            found[answer] - max(found[:answer] + found[answer + 1 :])
            for found, answer in zip(logprobs, answers, strict=True)
        ]
        chance = float(np.mean([1 / len(found) for found in logprobs]))
        if task.labels:
            details["majority"] = max(Counter(answers).values()) / len(answers)
    elif built.harness.OUTPUT_TYPE == "loglikelihood":
        items["logprob"] = [float(sample["filtered_resps"][0][0]) for sample in samples]
    scores = scored(f"tasks:{name}", correct, text=text, chance=chance, details=details, **items)
    floor = max(chance, details.get("majority", 0.0))
    return replace(scores, details={**details, "headroom": float(scores.interval.low > floor)})


def _answer(built: Built, doc: dict[str, Any]) -> int:
    """The number of the right choice. Where choices stand before the gap (Winogrande), lm-eval's text is the number."""
    harness = built.harness
    found = harness.doc_to_text(doc) if harness.multiple_input else harness.doc_to_target(doc)
    found = found[0] if isinstance(found, list) else found
    return int(found) if isinstance(found, int | np.integer) else harness.doc_to_choice(doc).index(found)

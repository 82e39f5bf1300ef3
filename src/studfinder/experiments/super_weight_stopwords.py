"""Which words does the model fall back on without its super weight (Yu et al. 2024, section 3.2, figure 5)?

The paper averages the next-token probabilities over 500 LAMBADA prompts (the passage without its last word; its code
takes the test split, its text says validation), ranks tokens on the original model, and shows that without the super
weight "stopwords" rise 2 to 10 times while content words fall. Stopwords were picked by eye there, and the tokens shown
were chosen on the prompts that they are judged on. Here the tokens are ranked on one half of the prompts and judged on
the other, a control weight (nearest in size in the same matrix) is set to zero beside the super weights, and stopwords
are a rule: every token of the vocabulary that is punctuation or white space (delimiter), or a function word or a single
digit (low-semantic). Their whole probability is the statistic; prompts are resampled.

Look at: the probability of all stopwords together, with the super weights and without, next to the control.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from studfinder.edits import Edit, edited, matched_controls, zero
from studfinder.errors import StudfinderError
from studfinder.experiments.dots import dots, point
from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.experiments.weights import super_weights_of
from studfinder.measures.tasks import TASKS
from studfinder.measures.tasks.harness import build_task
from studfinder.models import LM
from studfinder.records import Comparison, Interval, Result, Table
from studfinder.report.style import BLUE, GREY, VERMILLION, log_ticks, new_figure
from studfinder.report.words import brief, count
from studfinder.stats import mean_interval, ratio_interval
from studfinder.texts import Text, corpus, encode, token_class, token_text

EXPERIMENT = Experiment(
    name="super-weight/stopwords",
    paper="2411.07191",
    shows="figure 5",
    summary="Does the model fall back on stopwords without its super weight?",
    needs="about 4 minutes and 1 GB with smollm2 on two cores (plus the scan that finds the weights)",
    presets={
        "cpu": {"limit": 300, "top": 12, "text": "lambada"},
        "paper": {"limit": 500, "top": 40, "text": "lambada"},
    },
)
_CHUNK = 50
_STATES = ("clean", "without", "control")
_CLASSES = ("delimiter", "low-semantic", "other")


def run(bench: Bench) -> Outcome:
    """Rank tokens on one half of the prompts, judge them on the other."""
    outcome = Outcome([])
    for name in bench.models:
        with bench.model(name) as lm:
            weights, findings = super_weights_of(bench, lm)
            taken = [weight.index for weight in weights]
            controls = [matched_controls(lm, w, findings, count=1, exclude=taken)[0] for w in weights]
            source, prompts = _prompts(lm, bench.settings["text"], bench.settings["limit"], bench.settings["seed"])
            edits = {"clean": (), "without": zero(weights), "control": zero(controls)}
            seen = _seen(bench, lm, prompts, edits)
        title = " and ".join(brief(weight) for weight in weights)
        _report(outcome, name, seen, source, title, len(weights))
    return outcome


def _prompts(lm: LM, text: str, limit: int, seed: int) -> tuple[str, list[list[int]]]:
    """Passages without their last word, drawn at random, as token ids."""
    if text == "lambada":
        built = build_task("lambada", TASKS["lambada"])
        source, passages = f"lambada ({built.source})", [str(doc["text"]) for doc in built.harness.eval_docs]
    else:
        source, passages = corpus(Path(text))
    cut = [passage.rstrip().rpartition(" ")[0] for passage in passages]
    cut = [passage for passage in cut if passage.strip()]
    if len(cut) < 4:
        raise StudfinderError(f"{source} has {count(len(cut), 'passage')}", expected="at least four of two words")
    order = np.random.default_rng(seed).permutation(len(cut))[:limit]
    if len(order) < 4:
        raise StudfinderError(f"--limit {limit}", expected="4 or more prompts: half of them rank, half judge")
    return source, encode(lm, [Text(f"passage {i}", cut[i]) for i in sorted(order)])[0]


def _seen(bench: Bench, lm: LM, prompts: Sequence[list[int]], edits: dict[str, tuple[Edit, ...]]) -> dict[str, Any]:
    """The top tokens by one half; their probabilities, and those of each class, for each prompt of the other."""
    half = len(prompts) // 2
    ranking, judging = prompts[:half], prompts[half:]
    classes = _classes(lm)
    chunks = [judging[start : start + _CHUNK] for start in range(0, len(judging), _CHUNK)]
    total, done = half + len(_STATES) * len(judging), 0
    bench.progress("ranking tokens", 0, total)
    top = bench.once("rank", partial(_ranked, lm, ranking, bench.settings["top"]))
    done += half
    seen: dict[str, Any] = {"tokens": [token_text(lm, token) for token in top], "prompts": len(judging)}
    seen["classes"] = [_CLASSES[int(classes[token])] for token in top]
    for state in _STATES:
        seen[state] = {"top": [], "mass": []}
        for place, chunk in enumerate(chunks):
            bench.progress(f"judging, {state}", done, total)
            found = bench.once(f"{state} {place}", partial(_judged, lm, chunk, edits[state], top, classes))
            seen[state]["top"] += found["top"]
            seen[state]["mass"] += found["mass"]
            done += len(chunk)
    bench.progress("judged", total, total)
    return seen


def _classes(lm: LM) -> torch.Tensor:
    """The class of every token of the vocabulary, shape (V,)."""
    names = {name: number for number, name in enumerate(_CLASSES)}
    special = set(lm.tokenizer.all_special_ids) if lm.tokenizer is not None else set()
    return torch.tensor(
        [
            names["other"] if token in special else names[token_class(token_text(lm, token), 1)]
            for token in range(lm.anatomy.vocabulary)
        ]
    )


def _ranked(lm: LM, prompts: Sequence[list[int]], top: int) -> list[int]:
    total_V = torch.zeros(lm.anatomy.vocabulary, dtype=torch.float64)
    for ids in prompts:
        total_V += _next(lm, ids)
    return total_V.topk(min(top, len(total_V))).indices.tolist()


def _judged(
    lm: LM, prompts: Sequence[list[int]], edits: tuple[Edit, ...], top: list[int], classes_V: torch.Tensor
) -> dict[str, Any]:
    found: dict[str, Any] = {"top": [], "mass": []}
    if edits:
        with edited(lm, edits):
            return _judged(lm, prompts, (), top, classes_V)
    for ids in prompts:
        p_V = _next(lm, ids)
        found["top"].append(p_V[top].tolist())
        found["mass"].append(torch.zeros(len(_CLASSES), dtype=p_V.dtype).index_add(0, classes_V, p_V).tolist())
    return found


def _next(lm: LM, ids: list[int]) -> torch.Tensor:
    """Probabilities of the next token, shape (V,), in double precision."""
    options: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(lm.model.forward).parameters:
        options["logits_to_keep"] = 1
    with torch.no_grad():
        logits_V = lm.model(input_ids=torch.tensor([ids], device=lm.device), **options).logits[0, -1]
    return logits_V.double().softmax(dim=-1).cpu()[: lm.anatomy.vocabulary]


def _report(outcome: Outcome, name: str, seen: dict[str, Any], source: str, weights: str, many: int) -> None:
    mass = {state: np.array(seen[state]["mass"]) for state in _STATES}
    stop = {state: values[:, :2].sum(axis=1) for state, values in mass.items()}
    columns = ("tokens", "as it is", "without SW", "without a control", "without SW / as it is", "control / as it is")
    rows = [_mass_row("all stopwords", stop)]
    rows += [_mass_row(f"{kind} tokens", {s: m[:, i] for s, m in mass.items()}) for i, kind in enumerate(_CLASSES)]
    judged = f"{count(seen['prompts'], 'prompt')} of {source} that did not choose the tokens"
    outcome.tables.append(
        Table(
            title=f"{name}: probability of the next token by class",
            columns=columns,
            rows=tuple(rows),
            note=f"Mean over {judged}; the whole vocabulary counts. SW: {weights}. Stopwords are delimiters and "
            "low-semantic tokens.",
        )
    )
    top = {state: np.array(seen[state]["top"]) for state in _STATES}
    rows = [
        (repr(token), kind, *_mass_row("", {s: p[:, i] for s, p in top.items()})[1:])
        for i, (token, kind) in enumerate(zip(seen["tokens"], seen["classes"], strict=True))
    ]
    outcome.tables.append(
        Table(
            title=f"{name}: the likeliest next tokens",
            columns=("token", "class", *columns[1:]),
            rows=tuple(rows),
            note=f"Ranked on the other half of the prompts. Mean over {judged}. The paper, Llama-7B: the .0349 to "
            '.0739, "." .0110 to .0537, "," .0048 to .0505, and .0055 to .0335, her .0144 to .0058.',
        )
    )
    outcome.notes.append(_note(name, stop, many))
    outcome.data[name] = {
        "tokens": seen["tokens"],
        "classes": seen["classes"],
        **{state: [point(mean_interval(top[state][:, i])) for i in range(top[state].shape[1])] for state in _STATES},
        "stopwords": {state: point(mean_interval(stop[state])) for state in _STATES},
    }


def _mass_row(label: str, of: dict[str, np.ndarray]) -> tuple[Any, ...]:
    ratios = [
        Comparison(kind="ratio", interval=ratio_interval(of[state], of["clean"], what="prompts"))
        for state in ("without", "control")
    ]
    return (label, *(mean_interval(of[state], what="prompts") for state in _STATES), *ratios)


def _note(name: str, stop: dict[str, np.ndarray], many: int) -> str:
    change = mean_interval(stop["without"] - stop["clean"], what="prompts")
    control = mean_interval(stop["control"] - stop["clean"], what="prompts")
    which = "its super weight" if many == 1 else f"its {many} super weights"
    went = "rises" if change.low > 0 else "falls" if change.high < 0 else "does not clearly change"
    also = "moves it too" if control.low > 0 or control.high < 0 else "does not move it"
    return (
        f"{name}: the probability that a stopword comes next {went} without {which}, "
        f"from {stop['clean'].mean():.1%} to {stop['without'].mean():.1%} "
        f"(difference {_points(change)}); setting as many control weights to "
        f"zero {also} ({_points(control)}). The paper says that it rises."
    )


def _points(interval: Interval) -> str:
    return f"{interval.value:+.1%} [{interval.low:+.1%}, {interval.high:+.1%}]"


def draw(result: Result, width: float) -> dict[str, Figure]:
    """The top tokens' mean probabilities, and those of all stopwords, for each model."""
    figures = {}
    for place, (name, seen) in enumerate(result.data.items()):
        labels = ["all stopwords", *(repr(token) for token in seen["tokens"])]
        figure = new_figure(width, 80 + 30 * len(labels))
        axes = figure.add_subplot()
        series = {
            label: [seen["stopwords"][state], *seen[state]]
            for state, label in zip(_STATES, ("as it is", "without the super weights", "without controls"), strict=True)
        }
        dots(axes, labels, series, log=True, colours=(BLUE, VERMILLION, GREY))
        for tick, kind in zip(axes.get_yticklabels()[1:], seen["classes"], strict=True):
            tick.set_fontweight("bold" if kind != "other" else "normal")
        axes.set_xlabel(
            f"mean probability ({name}); bold: stopwords" if width > 600 else "probability; bold: stopwords"
        )
        log_ticks(axes.xaxis, most=6)
        figure.legend(loc="outside upper left", ncols=3 if width > 600 else 1)
        figures["stopwords" if not place else f"stopwords-{place + 1}"] = figure
    return figures

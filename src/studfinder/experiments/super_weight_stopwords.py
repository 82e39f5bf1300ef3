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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from studfinder.edits import zero
from studfinder.errors import StudfinderError
from studfinder.experiments.weights import controls_of, super_weights_of
from studfinder.measures import Scores, scored
from studfinder.measures.tasks import TASKS
from studfinder.measures.tasks.harness import build_task
from studfinder.models import LM
from studfinder.records import Chart, Comparison, Interval, Plot, Series, Table, point
from studfinder.records.config import option
from studfinder.report.words import brief, count
from studfinder.stats import mean_interval, ratio_interval
from studfinder.studies import GridScores, ModelVariant, with_edits
from studfinder.studies.experiment import Bench, Experiment, Outcome, StudyConfig
from studfinder.texts import Text, corpus, encode, token_class, token_text


@dataclass(frozen=True, kw_only=True)
class StopwordsConfig(StudyConfig):
    """Which prompts, and how many tokens are shown."""

    limit: int = option(300, help="Prompts: half of them rank, half judge.", least=4)
    top: int = option(12, help="Likeliest tokens that are shown.", least=1)
    text: str = option("lambada", help="lambada, or a file of passages.")


EXPERIMENT = Experiment(
    name="super-weight/stopwords",
    paper="2411.07191",
    shows="figure 5",
    summary="Does the model fall back on stopwords without its super weight?",
    needs="about 4 minutes and 1 GB with smollm2 on two cores (plus the scan that finds the weights)",
    presets={"cpu": StopwordsConfig(), "paper": StopwordsConfig(limit=500, top=40)},
)
_CLEAN, _WITHOUT, _CONTROL = _STATES = ("as it is", "without SW", "without a control")
_CLASSES = ("delimiter", "low-semantic", "other")
_NEXT, _STOPWORDS = "next token", "all stopwords"


def run(bench: Bench, lm: LM) -> Outcome:
    """Rank tokens on one half of the prompts, judge them on the other."""
    weights, findings = super_weights_of(bench, lm)
    source, prompts = _prompts(lm, bench.config.text, bench.config.limit, bench.config.seed)
    half = len(prompts) // 2
    bench.progress("ranking tokens", 0, half)
    top = bench.once("rank", partial(_ranked, lm, prompts[:half], bench.config.top))
    classes_V = _classes(lm)
    controls = controls_of(lm, weights, findings)
    variants = [ModelVariant(_CLEAN), with_edits(lm, _WITHOUT, zero(weights)), with_edits(lm, _CONTROL, zero(controls))]
    found = bench.grid(lm, variants, [_NextToken(prompts[half:], top, classes_V, source)])
    judged = f"{count(len(prompts) - half, 'prompt')} of {source} that did not choose the tokens"
    columns = (*_STATES, "without SW / as it is", "control / as it is")
    cells = {what: _cells(found, what) for what in (_STOPWORDS, *_CLASSES, *map(str, top))}
    by_class = Table(
        title="probability of the next token by class",
        columns=("tokens", *columns),
        rows=((_STOPWORDS, *cells[_STOPWORDS]), *((f"{kind} tokens", *cells[kind]) for kind in _CLASSES)),
        note=f"Mean over {judged}; the whole vocabulary counts. SW: {' and '.join(map(brief, weights))}. Stopwords are "
        "delimiters and low-semantic tokens.",
    )
    tokens = {token: (repr(token_text(lm, token)), _CLASSES[int(classes_V[token])]) for token in top}
    by_token = Table(
        title="the likeliest next tokens",
        columns=("token", "class", *columns),
        rows=tuple((*said, *cells[str(token)]) for token, said in tokens.items()),
        note=f"Ranked on the other half of the prompts. Mean over {judged}. The paper, Llama-7B: the .0349 to "
        '.0739, "." .0110 to .0537, "," .0048 to .0505, and .0055 to .0335, her .0144 to .0058.',
    )
    means = [cells[what] for what in (_STOPWORDS, *map(str, top))]
    series = tuple(
        Series(name=state, points=tuple(point(row[place]) for row in means), quiet=state == _CONTROL)
        for place, state in enumerate(_STATES)
    )
    rows = (_STOPWORDS, *(f"{token} *" if kind != "other" else token for token, kind in tokens.values()))
    plot = Plot(kind="dots", rows=rows, series=series, x="mean probability; *: stopword", log=True)
    return Outcome([by_class, by_token], [_note(found, len(weights))], [Chart(name="stopwords", plots=(plot,))])


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
    return source, encode(lm, [Text(f"passage {i}", cut[i]) for i in sorted(order)])[0]


def _classes(lm: LM) -> torch.Tensor:
    """The class of every token of the vocabulary, shape (V,)."""
    special = set(lm.tokenizer.all_special_ids) if lm.tokenizer is not None else set()
    kinds = (
        "other" if token in special else token_class(token_text(lm, token), 1) for token in range(lm.anatomy.vocabulary)
    )
    return torch.tensor([_CLASSES.index(kind) for kind in kinds])


def _ranked(lm: LM, prompts: Sequence[list[int]], top: int) -> list[int]:
    total_V = torch.zeros(lm.anatomy.vocabulary, dtype=torch.float64)
    for ids in prompts:
        total_V += _next(lm, ids)
    return total_V.topk(min(top, len(total_V))).indices.tolist()


def _next(lm: LM, ids: list[int]) -> torch.Tensor:
    """Probabilities of the next token, shape (V,), in double precision. No measure has them: a forward pass."""
    options: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(lm.model.forward).parameters:
        options["logits_to_keep"] = 1
    with torch.no_grad():
        logits_V = lm.model(input_ids=torch.tensor([ids], device=lm.device), **options).logits[0, -1]
    return logits_V.double().softmax(dim=-1).cpu()[: lm.anatomy.vocabulary]


@dataclass
class _NextToken:
    """How probable it is, after each prompt, that a stopword, a token of each class, or each of some tokens is next."""

    prompts: Sequence[list[int]]
    tokens: Sequence[int]
    classes_V: torch.Tensor
    text: str
    name: str = _NEXT

    def see(self, lm: LM) -> None:
        """The tokens were ranked before."""

    def scores(self, lm: LM) -> dict[str, Scores]:
        """One probability a prompt, by what comes."""
        rows = []
        for ids in self.prompts:
            p_V = _next(lm, ids)
            mass = torch.zeros(len(_CLASSES), dtype=p_V.dtype).index_add(0, self.classes_V, p_V)
            rows.append([*mass.tolist(), *p_V[list(self.tokens)].tolist()])
        items = dict(zip((*_CLASSES, *map(str, self.tokens)), np.array(rows).T, strict=True))
        items[_STOPWORDS] = items[_CLASSES[0]] + items[_CLASSES[1]]
        return {_NEXT: scored(_NEXT, items[_STOPWORDS], text=self.text, **items)}


def _cells(found: GridScores, what: str) -> tuple[Interval | Comparison, ...]:
    """Its mean probability in each state, and what that is over what it was."""
    of = {state: found.items(state, _NEXT, what) for state in _STATES}
    ratios = (ratio_interval(of[state], of[_CLEAN], what="prompts") for state in (_WITHOUT, _CONTROL))
    means = (mean_interval(of[state], what="prompts") for state in _STATES)
    return (*means, *(Comparison(kind="ratio", interval=ratio) for ratio in ratios))


def _note(found: GridScores, many: int) -> str:
    clean, without, control = (found.items(state, _NEXT, _STOPWORDS) for state in _STATES)
    change, other = (mean_interval(values - clean, what="prompts") for values in (without, control))
    went = "rises" if change.low > 0 else "falls" if change.high < 0 else "does not clearly change"
    return (
        f"the probability that a stopword comes next {went} without "
        f"{'its super weight' if many == 1 else f'its {many} super weights'}, from {clean.mean():.1%} to "
        f"{without.mean():.1%} (difference {change:+.1%}); setting as many control weights to zero "
        f"{'moves it too' if other.low > 0 or other.high < 0 else 'does not move it'} ({other:+.1%}). The paper says "
        "that it rises."
    )

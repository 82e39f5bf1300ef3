"""Which words does the model fall back on without its super weight (Yu et al. 2024, section 3.2, figure 5)?

The paper averages the next-token probabilities over 500 LAMBADA prompts (the passage without its last word; its code
takes the test split, its text says validation), ranks tokens on the original model, and shows that without the super
weight "stopwords" rise 2 to 10 times while content words fall. Stopwords were picked by eye there, and the tokens shown
were chosen on the prompts that they are judged on. Here the tokens are ranked on one half of the prompts and judged on
the other, and stopwords are a rule: every token of the vocabulary that is punctuation or white space (delimiter), or a
function word or a single digit (low-semantic). Their whole probability is the statistic; prompts are resampled. Where a
model does not know the last word, its stopwords may rise or fall for many reasons: only prompts count that it passes,
where the first token of the right word is the likeliest.

Controls: for each super weight one nearest in size that shares no row or column with any, set to zero; and 7,000 of the
largest other weights, which break a small model as well: if stopwords rise there too, they are what any broken model
falls back on.

Look at: the probability of all stopwords together, with the super weights and without, next to both controls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from studfinder.edits import Editable, zero
from studfinder.errors import StudfinderError
from studfinder.experiments.next_token import Asked, asked, next_probabilities
from studfinder.experiments.weights import (
    SuperWeightConfig,
    controls_of,
    count_of,
    largest_others,
    named,
    super_weights_of,
)
from studfinder.measures import Scores, scored
from studfinder.measures.tasks import TASKS
from studfinder.measures.tasks.harness import build_task
from studfinder.models import LM
from studfinder.records import Chart, Claim, ClaimResult, Comparison, Interval, Plot, Series, Table, point
from studfinder.records.config import option
from studfinder.report.words import count
from studfinder.stats import mean_interval, ratio_interval
from studfinder.studies import GridScores, ModelVariant, cost_of, judged, with_edits
from studfinder.studies.experiment import Bench, Experiment, Outcome
from studfinder.texts import ONE_DOCUMENT, corpus, token_class, token_text


@dataclass(frozen=True, kw_only=True)
class StopwordsConfig(SuperWeightConfig):
    """Which prompts, and how many tokens are shown."""

    limit: int = option(500, help="Prompts that are read.", least=4)
    passing: bool = option(True, help="Only prompts count whose last word the model says.")
    top: int = option(12, help="Likeliest tokens that are shown.", least=1)
    others: int = option(7000, help="How many of the largest other weights are taken away.", least=1)
    text: str = option("lambada", help="lambada, or passages: .jsonl holds several; a plain file is one.")


STOPWORDS = Claim(
    key="super-weight/stopwords",
    says="Without its super weight the model falls back on stopwords.",
    decides="probability that a stopword is next without the super weights less that without as many control weights",
    published="Llama-7B: the, the full stop, the comma and and together from .056 to .212",
    paper_effect=(0.0739 + 0.0537 + 0.0505 + 0.0335) - (0.0349 + 0.0110 + 0.0048 + 0.0055),
)
EXPERIMENT = Experiment(
    name="super-weight/stopwords",
    paper="2411.07191",
    shows="figure 5",
    summary="Does the model fall back on stopwords without its super weight?",
    needs="about 6 minutes and 1 GB with smollm2 on one core (plus the scan that finds the weights)",
    presets={"cpu": StopwordsConfig(), "paper": StopwordsConfig(passing=False, top=40)},
    claims=(STOPWORDS,),
    spread=True,
)
_CLEAN, _WITHOUT, _CONTROL, _OTHERS = _STATES = ("as it is", "without SW", "without a control", "without many others")
_RATIOS = tuple(f"{state.partition('without ')[2]} / as it is" for state in _STATES[1:])
_CLASSES = ("delimiter", "low-semantic", "other")
_NEXT, _STOPWORDS, _RIGHT = "next token", "all stopwords", "the right word"


def run(bench: Bench, lm: LM) -> Outcome:
    """Rank tokens on one half of the prompts, judge them on the other; stopwords as a whole on all."""
    own = bench.config
    weights, findings = super_weights_of(bench, lm)
    source, drawn = _prompts(lm, own.text, own.limit, own.seed)
    found = bench.once("prompts", partial(_chosen, bench, lm, drawn))
    prompts, top = [drawn[at] for at in found["kept"]], found["top"]
    kept = f"{count(len(prompts), 'prompt')} of {source}"
    if len(prompts) < 4:
        raise StudfinderError(
            f"{lm.source.id} says the last word of {len(prompts)} of {count(len(drawn), 'prompt')} of {source}",
            expected="at least four",
            do="Choose another model or easier prompts (text=FILE), or take all of them (passing=false)",
        )
    classes_V = _classes(lm)
    many = largest_others(lm, weights, own.others)
    targets: tuple[Editable, ...] = (weights, controls_of(lm, weights, findings), many)
    variants = [
        ModelVariant(_CLEAN),
        *(with_edits(lm, *pair) for pair in zip(_STATES[1:], map(zero, targets), strict=True)),
    ]
    scores = bench.grid(lm, variants, [_NextToken(prompts, top, classes_V, source)])
    return Outcome(
        [_class_table(scores, kept, named(weights)), _token_table(lm, scores, top, classes_V, kept)],
        [_passed(len(prompts), len(drawn), own.passing), _note(scores, len(weights), count_of(many))],
        [_chart(lm, scores, top, classes_V)],
        claims=[_judged(scores, own.limit, source)],
    )


def _class_table(found: GridScores, kept: str, weights: str) -> Table:
    rows = {_STOPWORDS: _STOPWORDS, **{kind: f"{kind} tokens" for kind in _CLASSES}, _RIGHT: _RIGHT}
    return Table(
        title="probability of the next token by class",
        columns=("tokens", *_STATES, *_RATIOS),
        rows=tuple((said, *_cells(found, what)) for what, said in rows.items()),
        note=f"Mean over {kept}; the whole vocabulary counts. SW: {weights}. Stopwords are delimiters and low-semantic "
        "tokens. Of the right word it is the first token.",
    )


def _token_table(lm: LM, found: GridScores, top: Sequence[int], classes_V: torch.Tensor, kept: str) -> Table:
    return Table(
        title="the likeliest next tokens",
        columns=(
            "token",
            "class",
            *_STATES,
            *_RATIOS,
        ),
        rows=tuple(
            (repr(token_text(lm, token)), _CLASSES[int(classes_V[token])], *_cells(found, str(token))) for token in top
        ),
        note=f"Ranked on every second one of {kept}; mean over the rest. The paper, Llama-7B: the .0349 to "
        '.0739, "." .0110 to .0537, "," .0048 to .0505, and .0055 to .0335, her .0144 to .0058.',
    )


def _chart(lm: LM, found: GridScores, top: Sequence[int], classes_V: torch.Tensor) -> Chart:
    means = [_cells(found, what) for what in (_RIGHT, _STOPWORDS, *map(str, top))]
    series = tuple(
        Series(name=state, points=tuple(point(row[place]) for row in means), quiet=state == _CONTROL)
        for place, state in enumerate(_STATES)
    )
    stars = ("" if _CLASSES[int(classes_V[token])] == "other" else " *" for token in top)
    rows = (_RIGHT, _STOPWORDS, *(repr(token_text(lm, token)) + star for token, star in zip(top, stars, strict=True)))
    plot = Plot(kind="dots", rows=rows, series=series, x="mean probability; *: stopword", log=True)
    return Chart(name="stopwords", plots=(plot,))


def _prompts(lm: LM, text: str, limit: int, seed: int) -> tuple[str, list[Asked]]:
    """Passages without their last word, drawn at random, as token ids."""
    if text == "lambada":
        built = build_task("lambada", TASKS["lambada"])
        source, passages = f"lambada ({built.source})", [str(doc["text"]) for doc in built.harness.eval_docs]
    else:
        source, passages = corpus(text)
    parts = (passage.rstrip().rpartition(" ") for passage in passages)
    cut = [(before, f" {last}") for before, _, last in parts if before.strip()]
    if len(cut) < 4:
        few = f"{source} has {count(len(cut), 'passage')}"
        raise StudfinderError(few, expected="at least four of two words", do=ONE_DOCUMENT)
    order = np.random.default_rng(seed).permutation(len(cut))[:limit]
    return source, asked(lm, [cut[i] for i in sorted(order)])


def _chosen(bench: Bench, lm: LM, drawn: Sequence[Asked]) -> dict[str, list[int]]:
    """Which prompts count, and the likeliest tokens after every second one of them."""
    kept: list[int] = []
    total_V = torch.zeros(lm.anatomy.vocabulary, dtype=torch.float64)
    for place, one in enumerate(drawn):
        bench.progress("reading prompts", place, len(drawn))
        p_V = next_probabilities(lm, one.ids)
        if not bench.config.passing or int(p_V.argmax()) == one.target:
            total_V += p_V * (len(kept) % 2 == 0)
            kept.append(place)
    return {"kept": kept, "top": total_V.topk(min(bench.config.top, len(total_V))).indices.tolist()}


def _classes(lm: LM) -> torch.Tensor:
    """The class of every token of the vocabulary, shape (V,)."""
    special = set(lm.tokenizer.all_special_ids) if lm.tokenizer is not None else set()
    kinds = (
        "other" if token in special else token_class(token_text(lm, token), 1) for token in range(lm.anatomy.vocabulary)
    )
    return torch.tensor([_CLASSES.index(kind) for kind in kinds])


@dataclass
class _NextToken:
    """How probable it is, after each prompt, that a stopword, a token of each class, or each of some tokens is next."""

    prompts: Sequence[Asked]
    tokens: Sequence[int]
    classes_V: torch.Tensor
    text: str
    name: str = _NEXT

    def see(self, lm: LM) -> None:
        """The prompts were chosen before."""

    def scores(self, lm: LM) -> dict[str, Scores]:
        """One probability a prompt, by what comes."""
        rows = []
        for one in self.prompts:
            p_V = next_probabilities(lm, one.ids)
            mass = torch.zeros(len(_CLASSES), dtype=p_V.dtype).index_add(0, self.classes_V, p_V)
            rows.append([*mass.tolist(), *p_V[[one.target, *self.tokens]].tolist()])
        items = dict(zip((*_CLASSES, _RIGHT, *map(str, self.tokens)), np.array(rows).T, strict=True))
        items[_STOPWORDS] = items[_CLASSES[0]] + items[_CLASSES[1]]
        return {_NEXT: scored(_NEXT, items[_STOPWORDS], text=self.text, **items)}


def _cells(found: GridScores, what: str) -> tuple[Interval | Comparison, ...]:
    """Its mean probability in each state, and what that is over what it was. Of single tokens, which every second
    prompt chose, over the others."""
    judge = slice(1, None, 2) if what.isdecimal() else slice(None)
    of = {state: found.items(state, _NEXT, what)[judge] for state in _STATES}
    ratios = (ratio_interval(of[state], of[_CLEAN], what="prompts") for state in _STATES[1:])
    means = (mean_interval(of[state], what="prompts") for state in _STATES)
    return (*means, *(Comparison(kind="ratio", interval=ratio) for ratio in ratios))


def _judged(found: GridScores, limit: int, source: str) -> ClaimResult:
    clean, without, control, _ = (found.items(state, _NEXT, _STOPWORDS) for state in _STATES)
    number, *each = (
        mean_interval(values, what="prompts") for values in (without - control, without - clean, control - clean)
    )
    effect, beside = (Comparison(kind="difference", interval=one) for one in each)
    seconds = sum(sum(of.values()) for of in found.seconds.values())
    cost = cost_of(STOPWORDS, number, "--limit ", limit, seconds)
    return judged(STOPWORDS, number, effect=effect, control=beside, items=f"{number.n} prompts of {source}", cost=cost)


def _passed(kept: int, drawn: int, passing: bool) -> str:
    return f"the model says the last word of {kept} of {drawn} prompts; {'only those' if passing else 'all'} count."


def _note(found: GridScores, weights: int, many: int) -> str:
    clean, without, control, others = (found.items(state, _NEXT, _STOPWORDS) for state in _STATES)
    change, other, broken = (mean_interval(values - clean, what="prompts") for values in (without, control, others))
    beyond = mean_interval(without - others, what="prompts")
    went = "rises" if change.low > 0 else "falls" if change.high < 0 else "does not clearly change"
    more = "more" if beyond.low > 0 else "less" if beyond.high < 0 else "not clearly more"
    return (
        f"the probability that a stopword comes next {went} without "
        f"{'its super weight' if weights == 1 else f'its {weights} super weights'}, from {clean.mean():.1%} to "
        f"{without.mean():.1%} (difference {change:+.1%}); setting as many control weights to zero "
        f"{'moves it too' if other.low > 0 or other.high < 0 else 'does not move it'} ({other:+.1%}). Without the "
        f"{many:,} largest others it changes by {broken:+.1%}: the super weights do {more}."
    )

"""Single prompts, with and without the super weight (Yu et al. 2024, arXiv 2411.07191, section 3.2).

The paper's example is "Summer is hot. Winter is": the model says "cold" with 81.4 %; without its super weight the
probability moves to words that fit anywhere ("the", 9.0 %). One prompt shows nothing of a model that does not say cold
in the first place, so the same is asked of thirty short prompts, and only those count whose word the model says. The
control is the weight nearest in size that shares no row or column with the super weight.

Look at: how many of the prompts the model passes at all, and what becomes of the right word there.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from studfinder.edits import edited, zero
from studfinder.errors import StudfinderError
from studfinder.experiments.next_token import Asked, asked, next_probabilities
from studfinder.experiments.weights import SuperWeightConfig, controls_of, named, super_weights_of
from studfinder.models import LM
from studfinder.records import Cell, Chart, Claim, ClaimResult, Plot, Series, Table, point
from studfinder.records.config import option
from studfinder.records.outside import json_lines
from studfinder.report.words import count
from studfinder.stats import mean_interval
from studfinder.studies import judged
from studfinder.studies.experiment import Bench, Experiment, Outcome
from studfinder.texts import token_text


@dataclass(frozen=True, kw_only=True)
class CaseConfig(SuperWeightConfig):
    """The prompts."""

    prompts: str = option("", help='A .jsonl with "text" and "answer" a line.', otherwise="thirty of our own")
    top: int = option(8, help="Likeliest tokens that are shown of the first prompt.", least=1)


COLLAPSE = Claim(
    key="super-weight/case",
    says="Without its super weight the model no longer says the obvious next word.",
    decides="probability of the right word without the super weight less that without a control weight",
    kind="less",
    published='"Summer is hot. Winter is": cold 81.4 %; then the likeliest word is the, with 9.0 %',
    paper_effect=-0.72,
)
EXPERIMENT = Experiment(
    name="super-weight/case",
    paper="2411.07191",
    shows="section 3.2, the example of figure 5",
    summary="What does the model say next with and without its super weight?",
    needs="about 30 seconds with smollm2 on two cores (plus the scan that finds the weight)",
    presets={"cpu": CaseConfig()},
    claims=(COLLAPSE,),
)
STATES = ("as it is", "without the super weight", "without a control weight")
_OWN = """Summer is hot. Winter is|cold
The opposite of up is|down
The capital of France is|Paris
The sun rises in the|east
Monday, Tuesday, Wednesday,|Thursday
One, two, three,|four
The sky is blue. The grass is|green
Ice is cold. Fire is|hot
The king and the|queen
Day and|night
The Earth goes around the|Sun
Twelve months make one|year
Once upon a|time
The cow gives|milk
Bees make|honey
Roses are red, violets are|blue
Left and|right
Romeo and|Juliet
Sugar is sweet. Lemons are|sour
A week has seven|days
The opposite of black is|white
In summer it is hot, and in winter it is|cold
A, B, C, D,|E
Ladies and|gentlemen
She was born in New York|City
Merry|Christmas
The Pacific|Ocean
The United States of|America
The opposite of big is|small
Night is dark. Day is|bright"""


def run(bench: Bench, lm: LM) -> Outcome:
    """The right word's probability in each state, prompt by prompt; then the likeliest tokens after the first."""
    seen = bench.once("next token", partial(_probabilities, bench, lm))
    prompts = seen["prompts"]
    passed = [one for one in prompts if one["passes"]]
    table = Table(
        title="the right word",
        columns=("prompt", "right word", "passes", *STATES, "likeliest without the super weight"),
        rows=tuple(_row(one) for one in prompts),
        note=f"Probability of the right word's first token. SW: {seen['weight']}. The paper, Llama-7B: cold 81.4 %; "
        "then the 9.0 %.",
    )
    claim = _judged(passed, len(prompts))
    still = sum(one["target"] == one["then"] for one in passed)
    note = f"the model passes {len(passed)} of {count(len(prompts), 'prompt')} before anything is cut"
    if claim.number is not None:
        as_is, without, control = (np.mean([one["right"][place] for one in passed]) for place in range(3))
        note += (
            f"; on those the right word goes from {as_is:.1%} on average to {without:.1%} without {seen['weight']} "
            f"(control: {control:.1%}), and is still the likeliest after {still}"
        )
    return Outcome([table, _first(seen)], [note + "."], [_chart(seen)], seen, claims=[claim])


def _row(one: dict[str, Any]) -> tuple[Cell, ...]:
    then = f"{one['words'][1]!r} {one['likeliest']:.1%}"
    return (one["prompt"], repr(one["words"][0]), "yes" if one["passes"] else "no", *one["right"], then)


def _judged(passed: list[dict[str, Any]], many: int) -> ClaimResult:
    if len(passed) < 2:
        return judged(
            COLLAPSE, None, why=f"the model passes {len(passed)} of {many} prompts", cost="a model that passes more"
        )
    without, control = np.array([one["right"][1:] for one in passed]).T
    number = mean_interval(without - control, what="prompts")
    means = [mean_interval(state, what="prompts") for state in (without, control)]
    items = f"{len(passed)} prompts of {many} that it passes"
    cost = "more prompts: --set prompts=FILE"
    return judged(COLLAPSE, number, effect=means[0], control=means[1], items=items, cost=cost)


def _first(seen: dict[str, Any]) -> Table:
    return Table(
        title=f"the likeliest next tokens after {seen['prompts'][0]['prompt']!r}",
        columns=("next token", *STATES),
        rows=tuple(zip(map(repr, seen["tokens"]), *(seen["shown"][state] for state in STATES), strict=True)),
    )


def _chart(seen: dict[str, Any]) -> Chart:
    series = tuple(
        Series(name=state, points=tuple(point(one["right"][place]) for one in seen["prompts"]), quiet=place == 2)
        for place, state in enumerate(STATES)
    )
    rows = tuple(f"{one['prompt']} ...{'' if one['passes'] else ' (not passed)'}" for one in seen["prompts"])
    plot = Plot(kind="dots", rows=rows, series=series, x="probability of the right word", percent=True)
    return Chart(name="right-word", plots=(plot,))


def _pairs(given: str) -> list[tuple[str, str]]:
    if not given:
        own = (line.split("|") for line in _OWN.splitlines())
        return [(text, f" {answer}") for text, answer in own]
    pairs = []
    for number, row in json_lines(Path(given), name="prompts file"):
        if not all(isinstance(row.get(key), str) and row[key].strip() for key in ("text", "answer")):
            raise StudfinderError(f"{given} line {number} is not a prompt", expected='"text" and "answer", both texts')
        pairs.append((row["text"].rstrip(), f" {row['answer'].strip()}"))
    if not pairs:
        raise StudfinderError(f"{given} holds no prompt", expected='"text" and "answer" a line')
    return pairs


def _probabilities(bench: Bench, lm: LM) -> dict[str, Any]:
    (weight, *_), findings = super_weights_of(bench, lm)
    (control,) = controls_of(lm, [weight], findings)
    prompts = asked(lm, _pairs(bench.config.prompts))
    if not prompts:
        raise StudfinderError("no prompt ends where a token of its answer begins", do="Choose other prompts")
    states: list[list[torch.Tensor]] = []
    for state, target in zip(STATES, (None, weight, control), strict=True):
        bench.progress(state, len(states), len(STATES))
        with nullcontext() if target is None else edited(lm, zero(target)):
            states.append([next_probabilities(lm, one.ids) for one in prompts])
    clean_V, without_V, _ = (state[0] for state in states)
    k = bench.config.top
    shown = list(dict.fromkeys([*clean_V.topk(k).indices.tolist(), *without_V.topk(k).indices.tolist()]))
    return {
        "weight": named([weight]),
        "prompts": [_one(lm, one, found) for one, *found in zip(prompts, *states, strict=True)],
        "tokens": [token_text(lm, token) for token in shown],
        "shown": {name: state[0][shown].tolist() for name, state in zip(STATES, states, strict=True)},
    }


def _one(lm: LM, one: Asked, found: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Of one prompt, given the probabilities in each state."""
    clean_V, without_V, _ = found
    then = int(without_V.argmax())
    return {
        "prompt": one.text,
        "target": one.target,
        "words": [token_text(lm, token) for token in (one.target, then)],
        "passes": int(clean_V.argmax()) == one.target,
        "right": [float(state_V[one.target]) for state_V in found],
        "then": then,
        "likeliest": float(without_V[then]),
    }

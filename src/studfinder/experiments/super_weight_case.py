"""One prompt, with and without the super weight (Yu et al. 2024, arXiv 2411.07191, section 3.2).

The paper's example is "Summer is hot. Winter is": the model says "cold" with 81.4 %; without its super weight the
probability moves to words that fit anywhere ("the", 9.0 %). We show the same beside a control: the weight nearest in
size in the same matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from studfinder.edits import edited, matched_controls, zero
from studfinder.experiments.weights import super_weights_of
from studfinder.models import LM
from studfinder.records import Chart, Plot, Series, Table, point
from studfinder.records.config import option
from studfinder.studies.experiment import Bench, Experiment, Outcome, StudyConfig
from studfinder.texts import Text, encode, token_text


@dataclass(frozen=True, kw_only=True)
class CaseConfig(StudyConfig):
    """The prompt."""

    prompt: str = option("Summer is hot. Winter is", help="What the model reads.")
    top: int = option(8, help="Likeliest tokens that are shown.", least=1)


EXPERIMENT = Experiment(
    name="super-weight/case",
    paper="2411.07191",
    shows="section 3.2, the example of figure 5",
    summary="What does the model say next with and without its super weight?",
    needs="about 30 seconds with smollm2 on two cores (plus the scan that finds the weight)",
    presets={"cpu": CaseConfig()},
)


STATES = ("as it is", "without the super weight", "without a control weight")


def run(bench: Bench, lm: LM) -> Outcome:
    """The likeliest next tokens of the clean model, and what becomes of them."""
    seen = bench.once("next token", partial(_probabilities, bench, lm))
    tokens, clean, without, control = (seen[key] for key in ("tokens", "clean", "without", "control"))
    best, then = clean.index(max(clean)), without.index(max(without))
    note = (
        f"{tokens[best]!r} goes from {clean[best]:.1%} to {without[best]:.1%} without {seen['weight']} (control: "
        f"{control[best]:.1%}); the likeliest token is then {tokens[then]!r} with {without[then]:.1%}."
    )
    shown = tuple(map(repr, tokens))
    rows = tuple(zip(shown, clean, without, control, strict=True))
    table = Table(
        title="probability of the next token",
        columns=("next token", *STATES),
        rows=rows,
        note="The paper, Llama-7B: cold 81.4 %; then the 9.0 %.",
    )
    series = tuple(
        Series(name=label, points=tuple(map(point, values)), quiet="control" in label)
        for label, values in zip(STATES, (clean, without, control), strict=True)
    )
    plot = Plot(kind="bars", rows=shown, series=series, x="probability of the next token", percent=True)
    return Outcome([table], [note], [Chart(name="next-token", plots=(plot,))], seen)


def _probabilities(bench: Bench, lm: LM) -> dict[str, Any]:
    (weight, *_), findings = super_weights_of(bench, lm)
    ids = encode(lm, [Text("prompt", bench.config.prompt)])[0][0]
    control = matched_controls(lm, weight, findings, count=2)[0]
    clean_V = _next(lm, ids)
    with edited(lm, zero(weight)):
        without_V = _next(lm, ids)
    with edited(lm, zero(control)):
        control_V = _next(lm, ids)
    k = bench.config.top
    shown = list(dict.fromkeys([*clean_V.topk(k).indices.tolist(), *without_V.topk(k).indices.tolist()]))
    return {
        "weight": str(weight),
        "tokens": [token_text(lm, token) for token in shown],
        "clean": clean_V[shown].tolist(),
        "without": without_V[shown].tolist(),
        "control": control_V[shown].tolist(),
    }


def _next(lm: LM, ids: list[int]) -> torch.Tensor:
    """Probabilities of the next token, shape (V,)."""
    with torch.no_grad():
        logits_V = lm.model(input_ids=torch.tensor([ids], device=lm.device), use_cache=False).logits[0, -1]
    return logits_V.float().softmax(dim=-1).cpu()

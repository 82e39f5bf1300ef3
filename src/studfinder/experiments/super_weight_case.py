"""One prompt, with and without the super weight (Yu et al. 2024, arXiv 2411.07191, section 3.2).

The paper's example is "Summer is hot. Winter is": the model says "cold" with 81.4 %; without its super weight the
probability moves to words that fit anywhere ("the", 9.0 %). We show the same beside a control: the weight nearest in
size in the same matrix.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure

from studfinder.edits import edited, matched_controls, zero
from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.experiments.weights import super_weights_of
from studfinder.models import LM
from studfinder.records import Result, Table
from studfinder.report.style import BLUE, GREY, VERMILLION, new_figure
from studfinder.texts import Text, encode, token_text

EXPERIMENT = Experiment(
    name="super-weight/case",
    paper="2411.07191",
    shows="section 3.2, the example of figure 5",
    summary="What does the model say next with and without its super weight?",
    needs="about 30 seconds with smollm2 on two cores (plus the scan that finds the weight)",
    presets={"cpu": {"prompt": "Summer is hot. Winter is", "top": 8}},
)


def run(bench: Bench) -> Outcome:
    """The likeliest next tokens of the clean model, and what becomes of them."""
    tables, notes, data = [], [], {}
    for name in bench.models:
        with bench.model(name) as lm:
            seen = bench.once("next token", partial(_probabilities, bench, lm))
        data[name] = seen
        table, note = _table(name, seen)
        tables.append(table)
        notes.append(note)
    return Outcome(tables, notes, data)


def _probabilities(bench: Bench, lm: LM) -> dict[str, Any]:
    (weight, *_), findings = super_weights_of(bench, lm)
    ids = encode(lm, [Text("prompt", bench.settings["prompt"])])[0][0]
    control = matched_controls(lm, weight, findings, count=2)[0]
    clean_V = _next(lm, ids)
    with edited(lm, zero(weight)):
        without_V = _next(lm, ids)
    with edited(lm, zero(control)):
        control_V = _next(lm, ids)
    k = bench.settings["top"]
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


def _table(name: str, seen: dict[str, Any]) -> tuple[Table, str]:
    columns = ("next token", "as it is", "without the super weight", "without a control weight")
    rows = tuple(
        (repr(token), *values)
        for token, *values in zip(seen["tokens"], seen["clean"], seen["without"], seen["control"], strict=True)
    )
    best = seen["clean"].index(max(seen["clean"]))
    then = seen["without"].index(max(seen["without"]))
    note = (
        f"{name}: {seen['tokens'][best]!r} goes from {seen['clean'][best]:.1%} to {seen['without'][best]:.1%} without "
        f"{seen['weight']} (control: {seen['control'][best]:.1%}); the likeliest token is then "
        f"{seen['tokens'][then]!r} with {seen['without'][then]:.1%}."
    )
    title = f"{name}: probability of the next token"
    return Table(
        title=title, columns=columns, rows=rows, note="The paper, Llama-7B: cold 81.4 %; then the 9.0 %."
    ), note


def draw(result: Result, width: float) -> dict[str, Figure]:
    """A bar a token and a model state, for each model."""
    figures = {}
    for place, (name, seen) in enumerate(result.data.items()):
        rows = len(seen["tokens"])
        figure = new_figure(width, 60 + 34 * rows)
        axes = figure.add_subplot()
        states = (
            ("clean", BLUE, "as it is"),
            ("control", GREY, "without a control"),
            ("without", VERMILLION, "without the super weight"),
        )
        for offset, (key, colour, label) in zip((-0.27, 0.0, 0.27), states, strict=True):
            axes.barh([y + offset for y in range(rows)], seen[key], height=0.25, color=colour, label=label)
        axes.set_yticks(range(rows), [repr(token) for token in seen["tokens"]])
        axes.invert_yaxis()
        axes.set_xlabel(f"probability of the next token ({name})")
        figure.legend(loc="outside upper left", ncols=3 if width > 600 else 1)
        figures["next-token" if not place else f"next-token-{place + 1}"] = figure
    return figures

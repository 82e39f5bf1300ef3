"""A made-up proof for real findings, so that the page's proved state can be tested without running one. Nothing here
was measured."""

from __future__ import annotations

import dataclasses
import random

from studfinder.records import Continuation, Effect, Findings, Interval, Proof, PublishedWeight
from studfinder.records.numbers import Verdict

FLOOR = 0.01
_FIRST: list[tuple[float, Verdict]] = [(2.31, "proven"), (0.0062, "proven-jointly"), (0.013, "candidate")]


def made_up_proof(findings: Findings, *, tested: int = 12) -> Findings:
    """The same findings with invented effects, verdicts, continuations and published coordinates: the first candidate
    is proven, the second proven jointly, the third stays a candidate, the others are inert."""
    draw = random.Random(0)
    weights = []
    for number, weight in enumerate(findings.super_weights):
        if number < tested:
            if number < len(_FIRST):
                kl, verdict = _FIRST[number]
            else:
                kl, verdict = 10 ** draw.uniform(-4.5, -2.5), "inert"
            effect = _effect(kl, draw, marginal=0.41 if verdict == "proven-jointly" else None)
            weight = dataclasses.replace(weight, effect=effect, verdict=verdict)
        weights.append(weight)
    first = weights[0]
    return dataclasses.replace(
        findings,
        super_weights=tuple(weights),
        proof=Proof(
            text="studfinder-proof-1",
            text_hash="0" * 64,
            windows=16,
            tokens=4021,
            floor=FLOOR,
            level=1 - 0.05 / tested,
            tested=min(tested, len(weights)),
            skipped=max(0, len(weights) - tested),
            joint=_effect(2.9, draw),
            clean_perplexity=18.4,
        ),
        continuation_prompt="The capital of France is",
        continuations=(
            Continuation(label="clean", text=" Paris. The city stands on the Seine and has been the seat of kings."),
            Continuation(label=f"without {first}", text=" the the, the of the.\n.\n\nthe the the the, the the the the"),
            Continuation(
                label=f"without a random weight of the same size: layers.{first.layer} down_proj[12, 345]",
                text=" Paris. The city stands on the Seine and has been the seat of the kings.",
            ),
        ),
        published=(
            PublishedWeight(
                model="an example of a paper",
                layer=first.layer,
                row=first.row,
                col=first.col,
                source="a table of a paper (a test's invention)",
                match="shape",
                rank=1,
                verdict="proven",
            ),
            PublishedWeight(
                model="another example", layer=1, row=2, col=3, source="nowhere", match="shape", rank=None, verdict=None
            ),
        ),
    )


def _effect(kl: float, draw: random.Random, marginal: float | None = None) -> Effect:
    controls = tuple(sorted(10 ** draw.uniform(-5, -2.6) for _ in range(20)))
    return Effect(
        kl=_interval(kl),
        perplexity_ratio=_interval(1 + 1.6 * kl),
        control_kl=_interval(controls[-1]),
        control_kls=controls,
        marginal_kl=None if marginal is None else _interval(marginal),
    )


def _interval(value: float) -> Interval:
    return Interval(value=value, low=0.8 * value, high=1.25 * value, level=0.996, n=16, method="invented")

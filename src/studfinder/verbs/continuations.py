"""The same prompt continued by the clean model, without one weight, and without another of the same size."""

from __future__ import annotations

import random
from contextlib import nullcontext

from studfinder.edits import Edit, Weights, edited, matched_controls, zero
from studfinder.measures.greedy import greedy
from studfinder.models import LM
from studfinder.records import Continuation, Findings, SuperWeight
from studfinder.sites import check_causal
from studfinder.texts import Text, as_text, encode

PROMPT = "Photosynthesis is the process by which"
_NEW = 40


def continuations(lm: LM, findings: Findings, *, bos: bool | None = None) -> tuple[Continuation, ...]:
    """Three greedy continuations of PROMPT, 40 tokens each: the weight is the first super weight.

    The control is drawn (fixed seed) from the ten weights of the same matrix that are nearest in |w|.

    Raises:
        StudfinderError: a model that is not causal.
    """
    check_causal(lm, "continuations")
    ids = encode(lm, [Text("continuation", PROMPT)], bos=bos)[0][0]
    weight = findings.super_weights[0]
    nearest = matched_controls(lm, weight, findings)[:10]
    control = random.Random(0).choice(nearest)
    cases: list[tuple[str, tuple[Edit, ...]]] = [
        ("clean", ()),
        (f"without {weight}", zero(weight)),
        (f"without a random weight of the same size: {_name(weight, control)}", zero(control)),
    ]
    return tuple(Continuation(label=label, text=_greedy(lm, ids, edits)) for label, edits in cases)


def _greedy(lm: LM, ids: list[int], edits: tuple[Edit, ...]) -> str:
    with edited(lm, edits) if edits else nullcontext():
        said = greedy(lm, [ids], _NEW)[0]
    assert lm.tokenizer is not None
    return as_text(lm.tokenizer, said, skip_special_tokens=True)


def _name(weight: SuperWeight, control: Weights) -> str:
    index = ", ".join(map(str, control.entries[0]))
    return f"layers.{weight.layer} {'.'.join(control.parameter.split('.')[-2:])}[{index}]"

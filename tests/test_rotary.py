"""Rotary facts of every architecture, by turning queries by hand: which pairs of dims turn together, and how fast."""

from __future__ import annotations

import math

import pytest
import torch

from architected import TYPES, built
from studfinder.errors import StudfinderError
from studfinder.models import LM, Rotary, load, rotary_of
from studfinder.sites import AttentionCall, tapped

OTHERWISE = {
    "ernie4_5_vl_moe": "layer 0 turns otherwise",  # three frequencies for three axes of a picture
    "jetmoe": "layer 0 repeats its heads after RoPE",
}
"""Types that are refused, or whose text positions have more than one frequency, and how that is said."""
FEW = ("llama", "gptj", "deepseek_v3", "cohere2", "glm4", "phi", "qwen3_5", "gpt_oss", "helium", "olmo2", "smollm3")


def queries(lm: LM) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """By layer: queries before and after RoPE, (T,H,D)."""
    found = {}

    def read(call: AttentionCall) -> None:
        if call.query_pre_BHTD is not None and call.stage == "post-RoPE":
            found[call.layer] = tuple(q[0].transpose(0, 1).clone() for q in (call.query_pre_BHTD, call.query_BHTD))

    ids = torch.randint(3, 200, (1, 11), generator=torch.Generator().manual_seed(3))
    with tapped(lm, read={AttentionCall: [read]}, pre_rope=True), torch.no_grad():
        lm.model(input_ids=ids, use_cache=False)
    return found


def turned(rotary: Rotary, before_THD: torch.Tensor, after_THD: torch.Tensor) -> float:
    """The largest difference between the angle that a pair has turned by and what the facts say, in radians."""
    worst = 0.0
    pairs: dict[int, list[int]] = {}
    for dim in range(before_THD.shape[-1]):
        pair = rotary.pair_of(dim)
        if pair is not None:
            pairs.setdefault(pair, []).append(dim)
    for pair, (a, b) in pairs.items():
        angle = [torch.atan2(q[..., b], q[..., a]) for q in (before_THD, after_THD)]
        own_TH = angle[1] - angle[0]
        own_TH = own_TH - own_TH[:1]  # the first position need not be 0
        said_T = torch.arange(len(before_THD)) * rotary.inv_freq[pair]
        apart = [(own_TH - sign * said_T[:, None] + math.pi) % (2 * math.pi) - math.pi for sign in (1, -1)]
        worst = max(worst, min(float(one.abs().max()) for one in apart))
    return worst


def check(kind: str) -> str:
    """What is wrong with a type; nothing if all is right."""
    lm = load(built(kind))
    try:
        seen = queries(lm)
    except StudfinderError as error:
        return str(error)
    for layer, pair in seen.items():
        rotary = rotary_of(lm, layer)
        if rotary is not None:
            apart = turned(rotary, *pair)
            if apart > 0.01:
                return f"layer {layer} turns otherwise, by {apart:.2g}"
    return ""


@pytest.mark.parametrize("kind", FEW)
def test_pairs_turn_as_the_facts_say(kind):
    assert check(kind) == ""


@pytest.mark.deep
@pytest.mark.parametrize("kind", TYPES)
def test_pairs_turn_as_the_facts_say_in_every_type(kind):
    assert check(kind).startswith(OTHERWISE.get(kind, ""))
    assert kind in OTHERWISE or check(kind) == ""

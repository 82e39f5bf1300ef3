"""Laws 2, 3 and 4: an edit leaves nothing, scales compose, and an edit of nothing is an error."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from studfinder.edits import (
    Edit,
    WeightEdit,
    Weights,
    channel,
    edited,
    edits_hash,
    entry,
    matched_controls,
    neuron,
    scale,
    top_fraction,
    zero,
)
from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.records import from_json, to_json
from studfinder.verbs.scan import scan
from tiny import ARCHITECTURES, tiny, token_ids


def bits(lm: LM) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone().view(torch.uint8) for name, p in lm.model.named_parameters()}


def same(lm: LM, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(p.detach().view(torch.uint8), before[name]) for name, p in lm.model.named_parameters())


def logits(lm: LM) -> torch.Tensor:
    with torch.no_grad():
        return lm.model(token_ids(), use_cache=False).logits


def random_edits(lm: LM, chance: random.Random) -> tuple[Edit, ...]:
    layer = chance.randrange(len(lm.anatomy.layers))
    writer = chance.randrange(len(lm.anatomy.layers[layer].writers))
    row, col = chance.randrange(32), chance.randrange(48)
    targets = [
        lambda: entry(lm, layer, row, col, writer),
        lambda: neuron(lm, layer, col, writer),
        lambda: channel(lm, layer, row, writer),
        lambda: top_fraction(lm, chance.choice([0.001, 0.1])),
        lambda: [entry(lm, layer, row, col, writer), neuron(lm, layer, col, writer)],
    ]
    return scale(chance.choice(targets)(), chance.choice([0.0, 0.5, -3.0, 1e30]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_edit_changes_exactly_its_numbers_and_leaves_no_bit(architecture: str) -> None:
    """Law 2: an edit leaves nothing."""
    lm = tiny(architecture)
    before, clean = bits(lm), logits(lm)
    writer = lm.anatomy.layers[1].writers[0]
    target = entry(lm, 1, 3, 4)
    with edited(lm, scale(target, 1000.0)):
        changed = [
            name for name, p in lm.model.named_parameters() if not torch.equal(p.view(torch.uint8), before[name])
        ]
        assert changed == [writer.parameter]
        old = before[writer.parameter].view(torch.float32).view(lm.model.get_parameter(writer.parameter).shape)
        moved = (lm.model.get_parameter(writer.parameter) != old).nonzero().tolist()
        assert moved == [list(writer.index(3, 4))]
        assert not torch.equal(logits(lm), clean)
    assert same(lm, before)
    assert torch.equal(logits(lm), clean)


# An interrupt that arrives inside somebody's callback of the garbage collector is printed, not raised.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_thousand_random_edits_leave_no_bit() -> None:
    """Some end by themselves, some by an exception, some by a Ctrl-C at a random moment."""
    chance = random.Random(0)
    models = [
        tiny(name, dtype=dtype) for name in ("llama", "gpt2", "gpt_oss") for dtype in (torch.float32, torch.bfloat16)
    ]
    clean = [(lm, bits(lm)) for lm in models]
    interrupted = failed = 0
    handler = signal.getsignal(signal.SIGINT)
    for number in range(1000):
        lm, before = clean[number % len(clean)]
        edits = random_edits(lm, chance)
        ending = chance.choice(["plain", "exception", "nested", "interrupt", "interrupt"])
        timer = None
        try:
            if ending == "interrupt":
                delay = chance.uniform(0, 1.5e-3)
                timer = threading.Thread(target=lambda d=delay: (time.sleep(d), os.kill(os.getpid(), signal.SIGINT)))
                timer.start()
            with edited(lm, edits):
                if ending == "exception":
                    raise RuntimeError
                if ending == "nested":
                    with edited(lm, random_edits(lm, chance)):
                        pass
                if ending == "interrupt":
                    time.sleep(chance.uniform(0, 1.5e-3))
            if timer is not None:
                timer.join()
                time.sleep(1e-3)
        except KeyboardInterrupt:
            interrupted += 1
        except RuntimeError:
            failed += 1
        finally:
            while timer is not None and timer.is_alive():
                try:
                    timer.join()
                except KeyboardInterrupt:
                    interrupted += 1
        assert same(lm, before), f"edit {number}, {ending}: a bit was left behind"
        assert signal.getsignal(signal.SIGINT) is handler
    assert interrupted > 200
    assert failed > 100


@given(a=st.sampled_from([0.5, 2.0, -4.0, 0.25]), b=st.sampled_from([0.5, 2.0, -1.0]), seed=st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_scales_compose(a: float, b: float, seed: int) -> None:
    """Law 3: scale(a) then scale(b) = scale(ab) up to rounding."""
    lm = tiny("llama", seed=0)
    target = top_fraction(lm, 0.05)
    with edited(lm, (*scale(target, a), *scale(target, b))):
        twice = bits(lm)
    with edited(lm, scale(target, a * b)):
        assert same(lm, twice)  # powers of two: exactly


def test_scale_by_one_is_the_identity() -> None:
    """Law 3: scale(1) = identity."""
    lm = tiny("qwen3")
    before = bits(lm)
    with edited(lm, scale(top_fraction(lm, 0.1), 1.0)):
        assert same(lm, before)


def test_edits_nest_serialise_and_hash() -> None:
    lm = tiny("llama")
    edits = zero(entry(lm, 1, 2, 3))
    assert from_json(WeightEdit, to_json(edits[0])) == edits[0]
    assert edits_hash(edits) == edits_hash(zero(entry(lm, 1, 2, 3)))
    assert edits_hash(edits) != edits_hash(zero(entry(lm, 1, 3, 2)))
    assert edits_hash(edits) != edits_hash(scale(entry(lm, 1, 2, 3), 0.5))
    before = bits(lm)
    with edited(lm, scale(entry(lm, 1, 2, 3), 2.0)), edited(lm, scale(entry(lm, 1, 2, 3), 2.0)):
        nested = bits(lm)
    with edited(lm, scale(entry(lm, 1, 2, 3), 4.0)):
        assert same(lm, nested)
    assert same(lm, before)


def test_top_fraction_takes_the_largest_and_keeps_what_is_named() -> None:
    lm = tiny("llama")
    name = lm.anatomy.layers[0].writers[0].parameter
    (chosen,) = top_fraction(lm, 0.01, [name])
    values = lm.model.get_parameter(name).detach().abs()
    picked = sorted(float(values[index]) for index in chosen.entries)
    assert picked == sorted(values.flatten().topk(len(picked)).values.tolist())
    (fewer,) = top_fraction(lm, 0.01, [name], keep={(name, chosen.entries[0])})
    assert set(chosen.entries) - set(fewer.entries) == {chosen.entries[0]}


@pytest.mark.parametrize(
    "make",
    [
        lambda lm: edited(lm, ()),
        lambda lm: zero([]),
        lambda lm: zero(Weights(parameter="nothing", entries=())),
        lambda lm: edited(lm, zero(Weights(parameter="no.such.weight", entries=((0, 0),)))),
        lambda lm: edited(lm, zero(Weights(parameter="lm_head.weight", entries=((0, 10**6),)))),
        lambda lm: edited(lm, zero(Weights(parameter="lm_head.weight", entries=((0,),)))),
        lambda lm: entry(lm, 99, 0, 0),
        lambda lm: entry(lm, 0, 0, 10**6),
        lambda lm: neuron(lm, 0, -1),
        lambda lm: channel(lm, 0, 0, writer=3),
        lambda lm: top_fraction(lm, 0.0),
        lambda lm: zero("model.layers.0"),
    ],
)
def test_an_edit_of_nothing_is_an_error(make) -> None:  # type: ignore[no-untyped-def]
    """Law 4: an edit that resolves to nothing is an error, never a no-op."""
    with pytest.raises(StudfinderError):
        make(tiny("llama"))


def test_offloaded_and_quantised_weights_are_refused() -> None:
    lm = tiny("llama")
    block = lm.model.get_submodule("model.layers.0")
    block.self_attn.q_proj.weight = torch.nn.Parameter(block.self_attn.q_proj.weight.to("meta"))
    change = edited(lm, zero(Weights(parameter="model.layers.0.self_attn.q_proj.weight", entries=((1, 2),))))
    with pytest.raises(StudfinderError, match="offloaded"), change:
        pass
    target = entry(lm, 0, 1, 2)
    block.mlp.down_proj.weight = torch.nn.Parameter(torch.zeros(32, 48, dtype=torch.int8), requires_grad=False)
    with pytest.raises(StudfinderError, match="quantised"):
        edited(lm, zero(target))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_an_offloaded_down_projection_gives_what_an_edit_in_place_gives(architecture, dtype, tmp_path) -> None:
    from accelerate import disk_offload

    whole, lm = tiny(architecture, dtype=dtype), tiny(architecture, dtype=dtype)
    ref = lm.anatomy.layers[1].writers[0]
    for each in (whole, lm):
        with torch.no_grad():
            each.model.get_parameter(ref.parameter)[ref.index(3, 4)] = 30.0
    disk_offload(lm.model.get_submodule(lm.anatomy.layers[1].block), tmp_path)
    assert lm.model.get_parameter(ref.parameter).is_meta
    clean = logits(lm)
    assert torch.equal(clean, logits(whole))
    cases = [
        zero(entry(whole, 1, 3, 4)),
        [*scale(entry(whole, 1, 3, 4), 0.5), *zero(channel(whole, 1, 3)), *scale(entry(whole, 1, 5, 6), 40.0)],
        [*zero(neuron(whole, 1, 4)), *scale(entry(whole, 1, 3, 4), 2.0)],
        [*scale(neuron(whole, 1, 4), 3.0), *zero(entry(whole, 2, 1, 1))],
    ]
    for edits in cases:
        with edited(whole, edits):
            expected = logits(whole)
        with edited(lm, edits):
            found = logits(lm)
        tolerance = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.02, "rtol": 0.02}
        torch.testing.assert_close(found, expected, **tolerance)
        assert not torch.allclose(found, clean, **tolerance)
    assert torch.equal(logits(lm), clean)
    with pytest.raises(StudfinderError, match="not an index"):
        edited(lm, zero(Weights(parameter=ref.parameter, entries=((99, 0),))))


def test_controls_are_nearest_in_size_and_in_contribution() -> None:
    from proving import provable

    lm, _ = provable("llama", planted=True)
    findings = scan(lm, prove=False)
    found = findings.super_weights[0]
    controls = matched_controls(lm, found, findings, count=20)
    indices = [weights.entries[0] for weights in controls]
    assert len(set(indices)) == 20
    assert found.index not in indices
    values = lm.model.get_parameter(found.parameter).detach().abs()
    largest = {divmod(int(i), values.shape[1]) for i in values.flatten().topk(11).indices}
    assert set(indices[:10]) == largest - {found.index}  # the planted weight is the largest: its neighbours come next

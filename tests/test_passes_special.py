"""The engine on models that are special, and streams that end early, are watched, or change nothing."""

from __future__ import annotations

import random
import signal
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload

from architected import built
from carried import DOWN, SPECIAL, at_sites, everywhere, llama, of, own, same, scaled, texts, three, wrong
from patching import at_step, difference, interrupted, ready, traces
from studfinder.edits import Activations, LargestEntry, edited, scale, stream_of
from studfinder.errors import StudfinderError
from studfinder.measures import effects_of
from studfinder.models import load
from studfinder.passes import BlockRuns, Stream, carry, gradients, likelihood
from studfinder.sites import AttentionCall, BlockOutput, WriterCall, tapped
from tried import tokens

pytestmark = pytest.mark.filterwarnings("ignore::studfinder.edits.TiedWeightsWarning")


@pytest.mark.parametrize("name", SPECIAL)
def test_special_models(name):
    """Law 11 where forks and stored inputs might go wrong."""
    lm = SPECIAL[name]()
    few = slice(None, None, 6 if "several" in name else 1)
    assert wrong(lm, [[edit] for edit in everywhere(lm)[few]], texts(lm, 6, 4)) == []
    assert wrong(lm, [[edit] for edit in at_sites(lm)[few]], texts(lm, 6, 4)[:1]) == []


def test_a_matrix_that_a_block_uses_twice():
    """An edit of it under its later name forks before the earlier use."""
    lm = llama()
    attention = lm.model.model.layers[2].self_attn
    attention.o_proj.weight = attention.q_proj.weight
    assert (
        wrong(lm, [[scaled(lm, f"model.layers.2.self_attn.{name}_proj.weight")] for name in "qo"], texts(lm, 9, 6))
        == []
    )


@pytest.mark.parametrize("how", ["cpu", "disk"])
def test_an_offloaded_model(how, tmp_path):
    """Law 11: offloaded is resident."""
    whole, lm = llama(), built("llama")
    if how == "cpu":
        cpu_offload(lm, execution_device=torch.device("cpu"))
    else:
        disk_offload(lm, tmp_path, execution_device=torch.device("cpu"))
    lm = load(lm)
    assert lm.model.lm_head.weight.is_meta
    for ends in carry(lm, texts(lm, 9, 6), [stream_of(lm, scaled(lm, DOWN))]):
        assert same(of(ends), own(whole, ends.batch))
        with edited(whole, scaled(whole, DOWN)):
            assert same(of(ends, 0), own(whole, ends.batch))
    with pytest.raises(StudfinderError, match="offloaded"):
        gradients(lm, texts(lm, 9), likelihood())


def test_a_compiled_model():
    """It runs as it was written: replaced forwards would be compiled along, or passed by."""
    lm = llama()
    plain = [own(lm, batch) for batch in texts(lm, 9, 6)]
    runs: list[int] = []

    def backend(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        runs.append(1)
        return graph.forward

    lm.model.compile(backend=backend)
    for layer in lm.model.model.layers:
        layer.compile(backend=backend)
    for ends, theirs in zip(carry(lm, texts(lm, 9, 6), [stream_of(lm, three(lm)[0])]), plain, strict=True):
        assert same(of(ends), theirs)
        assert not same(of(ends, 0), theirs)
    assert not runs


def test_a_model_that_skips_blocks_is_refused():
    """What is known of how blocks are called is known of all of them."""
    lm = llama()
    list(carry(lm, texts(lm, 9)))
    lm.model.model.layers[3].forward = None
    lm.model.config.num_hidden_layers = 3  # llama runs so many
    with pytest.raises(StudfinderError, match="runs 3 of its 5 blocks"):
        list(carry(lm, texts(lm, 9)))


def test_a_stream_that_changes_nothing_is_the_clean_one():
    """Its divergence is 0, not about 0."""
    lm = llama()
    idle = [
        Stream(enter=lambda _: nullcontext(), first=first, last=last)
        for first, last in [(-1, 5), (0, 0), (2, 4), (5, 5)]
    ]
    inside = Stream(enter=lambda _: nullcontext(), first=2, last=2, touches=("model.layers.2.mlp.up_proj",))
    effects = effects_of(lm, tokens(lm, 3, 9), [*idle, inside, [scaled(lm, DOWN, 1.0)]])
    assert not effects.kl.any()
    assert (effects.nll == effects.clean_nll).all()


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_enters_its_change_layer_by_layer(seed):
    """A change of several blocks need only be in force in the block that runs."""
    lm, chance = llama(), random.Random(seed)
    layers = sorted(chance.sample(range(5), 3))
    changes = {layer: edited(lm, scaled(lm, f"model.layers.{layer}.mlp.down_proj.weight")) for layer in layers}
    first, last = chance.randint(-1, layers[0]), chance.randint(layers[-1], 5)

    def enter(at: int) -> Any:
        return changes[at].applied(lambda number: True) if at in changes else nullcontext()

    stream = Stream(enter=enter, first=first, last=last)
    (ends,) = carry(lm, texts(lm, 9)[:1], [stream])
    with ExitStack() as stack:
        for change in changes.values():
            stack.enter_context(change)
        theirs = own(lm, ends.batch)
    assert same(of(ends, 0), theirs)


def test_parts_give_what_one_gives(monkeypatch):
    lm = llama()
    streams = [stream_of(lm, edits) for edits in three(lm)]
    many = texts(lm, 9, 6) + texts(lm, 7, 8)

    def logits(work: BlockRuns) -> list[torch.Tensor]:
        found = carry(lm, many, streams, work=work)
        return [of(ends, number) for ends in found for number in (None, *range(len(streams)))]

    whole, parts = BlockRuns(), BlockRuns()
    expected = logits(whole)
    monkeypatch.setattr("studfinder.passes.streams.STATES_AT_ONCE", 1)
    assert all(map(same, expected, logits(parts)))
    assert parts.blocks == pytest.approx(whole.blocks)


@pytest.mark.parametrize("alone", [False, True], ids=["all readers", "of attention"])
@pytest.mark.parametrize("outer", [False, True], ids=["plain", "edited"])
def test_readers_see_each_block_of_each_stream_once(outer, alone):
    """As in passes of the model itself, whatever forks inside a block, and inside an outer edit too."""
    lm = llama()
    streams = [stream_of(lm, edits) for edits in three(lm)]
    batch = texts(lm, 9, 6)[0]
    seen: dict[Any, list[torch.Tensor]] = defaultdict(list)
    read = {
        BlockOutput: [lambda event: seen["block", event.layer].append(event.hidden_BTC)],
        AttentionCall: [lambda event: seen["attention", event.layer].append(event.query_BHTD)],
        WriterCall: [lambda event: seen["writer", event.layer].append(event.output_NC)],
    }
    read = {AttentionCall: read[AttentionCall]} if alone else read
    with edited(lm, scale(Activations("residual[1]", LargestEntry()), 2.0)) if outer else nullcontext():
        with tapped(lm, read=read):
            (ends,) = carry(lm, [batch], streams)
        carried = {place: [one.clone() for one in found] for place, found in seen.items()}
        seen.clear()
        with tapped(lm, read=read):
            clean = own(lm, batch, outer)
            changed = []
            for edits in three(lm):
                with edited(lm, edits):
                    changed.append(own(lm, batch, outer))
        assert same(of(ends), clean)
        assert all(same(of(ends, number), theirs) for number, theirs in enumerate(changed))
    assert set(carried) == set(seen)
    forked = {0: -1, 3: -1, 1: 2, 2: 2}  # from where each runs, in this order: those that began earlier come first
    for place, theirs in seen.items():
        run = [number for number, first in forked.items() if place[1] >= first]
        assert len(carried[place]) == len(run)
        assert all(same(one, theirs[number]) for one, number in zip(carried[place], run, strict=True))


def test_what_ends_in_the_middle_leaves_nothing():
    """Law 2: an exception in a stream or a reader, a consumer that stops, Ctrl-C at any instruction."""
    lm = llama()
    batch, streams = texts(lm, 9, 6), [stream_of(lm, edits) for edits in three(lm)]
    own(lm, batch[0])
    before = traces(lm)

    class Ends(Exception):
        pass

    @contextmanager
    def failing(layer: int) -> Iterator[None]:
        with edited(lm, scaled(lm, DOWN)).applied(lambda number: True):
            yield
            if layer == 3:
                raise Ends

    def stop(event: BlockOutput) -> None:
        if event.layer == 3:
            raise Ends

    with pytest.raises(Ends):
        list(carry(lm, batch, [*streams, Stream(enter=failing, first=1, last=4)]))
    with pytest.raises(Ends), tapped(lm, read={BlockOutput: [stop]}):
        list(carry(lm, batch, streams))
    next(carry(lm, batch, streams))
    next(gradients(lm, batch, likelihood()))
    assert difference(before, traces(lm)) == []

    def run() -> None:
        list(carry(lm, batch, streams))
        list(gradients(lm, batch, likelihood()))

    with ready():
        before, chance = traces(lm), random.Random(0)
        send, counted = at_step(signal.SIGINT, 0)
        interrupted(run, send)
        for _ in range(6):
            send, _ = at_step(signal.SIGINT, chance.randint(1, counted[0]))
            assert interrupted(run, send) is not None
            assert difference(before, traces(lm)) == []

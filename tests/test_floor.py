"""The null edit: every entry to the next number of its dtype, and effects less what that does."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from architected import built
from patching import difference, logits, traces
from studfinder.edits import (
    EditList,
    Weights,
    channel,
    dims,
    edited,
    edits_hash,
    entry,
    neuron,
    null,
    null_streams,
    scale,
    zero,
)
from studfinder.edits.neighbours import to_neighbours
from studfinder.errors import NotApplicable, StudfinderError
from studfinder.measures import effects_of, net_effect
from studfinder.models import LM, load
from studfinder.quantizers import targets
from studfinder.records import from_json, to_json
from tiny import tiny

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TYPES = ("llama", "gpt2", "gemma2", "mixtral", "qwen3_moe", "gpt_oss", "mamba2", "bloom", "opt", "deepseek_v3")
WINDOWS = [[(7 * row + 3 * at) % 90 + 3 for at in range(24)] for row in range(8)]


def whole(lm: LM, name: str) -> Weights:
    return Weights(parameter=name, entries=((None,) * lm.model.get_parameter(name).dim(),))


def loud(lm: LM) -> LM:
    """Matrices twenty times as large: what their last bits do can be seen above the rounding of a KL in fp32."""
    with torch.no_grad():
        for name in matrices(lm):
            lm.model.get_parameter(name).mul_(20)
    return lm


def matrices(lm: LM) -> list[str]:
    blocks = tuple(layer.block + "." for layer in lm.anatomy.layers)
    return [name for name, one in lm.model.named_parameters() if name.startswith(blocks) and one.dim() >= 2]


def bits(values: torch.Tensor) -> torch.Tensor:
    """Numbers counted from 0 in the order of their size: neighbours are one apart, and the two zeros are one."""
    raw = values.view({2: torch.int16, 4: torch.int32}[values.element_size()]).long()
    return torch.where(raw < 0, -(raw & torch.iinfo(torch.int64).max & (2 ** (8 * values.element_size() - 1) - 1)), raw)


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 10**6), spread=st.sampled_from([1e-6, 1e-2, 1.0, 1e4]))
@settings(max_examples=20, deadline=None)
def test_a_neighbour_is_one_away_and_up_as_often_as_down(dtype, seed, spread) -> None:
    values = (torch.randn(64, 64, generator=torch.Generator().manual_seed(seed)) * spread).to(dtype)
    moved = to_neighbours(values, (slice(None), slice(None)), str(seed))
    steps = bits(moved) - bits(values)
    assert set(steps.unique().tolist()) == {-1, 1}
    assert abs(steps.float().mean()) < 5 / 64  # five standard deviations of 4096 coins
    rows, columns = steps.float().mean(dim=1), steps.float().mean(dim=0)
    assert max(rows.abs().max(), columns.abs().max()) < 5.5 / 8


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_largest_goes_down_and_what_is_not_finite_stays(dtype) -> None:
    top = torch.finfo(dtype).max
    values = torch.tensor([top, -top, torch.inf, -torch.inf, torch.nan, 0.0] * 20, dtype=dtype)
    moved = to_neighbours(values, (slice(None),), "any")
    assert moved.isfinite().tolist() == [True, True, False, False, False, True] * 20
    assert (moved[0::6] < values[0::6]).all()
    assert (moved[1::6] > values[1::6]).all()
    assert torch.equal(moved.isnan(), values.isnan())
    assert (moved[5::6] != 0).all()


@pytest.mark.parametrize("shape", [(30,), (6, 9), (4, 6, 9)])
def test_a_coin_is_of_its_entry_however_it_is_reached(shape) -> None:
    values = torch.ones(shape)
    every = to_neighbours(values, (slice(None),) * len(shape), "s")
    index = tuple(torch.randint(0, size, (40,)) for size in shape)
    assert torch.equal(to_neighbours(values[index], index, "s"), every[index])
    for axis in range(len(shape)):
        place = tuple(2 if at == axis else slice(None) for at in range(len(shape)))
        assert torch.equal(to_neighbours(values[place], place, "s"), every[place])
    one = (3,) * len(shape)
    assert torch.equal(to_neighbours(values[one], one, "s"), every[one])
    assert not torch.equal(to_neighbours(values, (slice(None),) * len(shape), "t"), every)


@pytest.mark.parametrize("kind", TYPES)
def test_draws_differ_seeds_reproduce_and_the_model_is_as_before(kind) -> None:
    lm = loud(load(built(kind, dtype=torch.bfloat16)))
    names = matrices(lm)
    before, kept = traces(lm), lm.model.get_parameter(names[0]).detach().clone()
    edits = zero([whole(lm, name) for name in names])
    found = []
    for seed in (0, 0, 1):
        with edited(lm, null(edits, seed)):
            found.append(lm.model.get_parameter(names[0]).detach().clone())
    assert torch.equal(found[0], found[1])
    assert set((bits(found[0]) - bits(kept)).unique().tolist()) == {-1, 1}
    assert 0.3 < (found[0] != found[2]).float().mean() < 0.7
    windows = [[token % lm.anatomy.vocabulary for token in ids] for ids in WINDOWS[:2]]
    nulls = effects_of(lm, windows, [*null_streams(lm, edits, 2), null(edits, 1)]).kl
    assert (nulls > 0).all()
    assert nulls[0].tolist() != nulls[1].tolist() == nulls[2].tolist()
    assert not difference(before, traces(lm))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_the_floor_is_of_the_dtype_and_grows_with_what_is_edited(architecture) -> None:
    floors = {}
    for dtype in DTYPES:
        lm = loud(tiny(architecture, dtype=dtype))
        for count in (1, None):
            edits = zero([whole(lm, name) for name in matrices(lm)[:count]])
            floors[dtype, count] = net_effect(lm, WINDOWS, edits).null.value
    assert all(floors[dtype, None] > floors[dtype, 1] for dtype in DTYPES[1:])
    assert floors[torch.bfloat16, None] > floors[torch.float16, None] > floors[torch.float32, None]


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_what_an_edit_changes_moves(dtype) -> None:
    lm = tiny("llama", dtype=dtype)
    name = "model.layers.1.mlp.down_proj.weight"
    weight = lm.model.get_parameter(name)
    with torch.no_grad():
        weight[3, ::2] = 0
    clean = weight.detach().clone()
    with edited(lm, null(zero([channel(lm, 1, 3), entry(lm, 1, 5, 6)]))):
        moved = bits(weight.detach()) - bits(clean)
    assert (moved[3, 1::2].abs() == 1).all()
    assert moved.abs().sum() == len(moved[3, 1::2]) + 1
    assert torch.equal(clean, weight)
    nothing = net_effect(lm, WINDOWS, scale(channel(lm, 1, 3), 1.0))
    assert (nothing.kl.value, nothing.null.value, nothing.net.value) == (0, 0, 0)


def test_noise_less_noise_is_nothing_and_a_real_effect_stays() -> None:
    lm = loud(tiny("llama", dtype=torch.bfloat16))
    edits = zero([whole(lm, name) for name in matrices(lm)])
    for seed in range(100, 105):
        noise = net_effect(lm, WINDOWS, null(edits, seed))
        assert noise.kl.value > 0
        assert noise.net.low < 0 < noise.net.high
        assert noise.net.method == "paired bootstrap over windows and 8 draws"
    real = net_effect(lm, WINDOWS, zero(channel(lm, 1, 3)), draws=2)
    assert 0 < real.net.low < real.net.value == pytest.approx(real.kl.value - real.null.value)
    with pytest.raises(StudfinderError, match="0 draws"):
        net_effect(lm, WINDOWS, edits, draws=0)


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "gpt_oss", "gpt2"])
def test_what_is_quantised_has_a_null_edit_too(kind) -> None:
    lm = load(built(kind))
    for target in targets(lm)[::5]:
        parameter = lm.model.get_parameter(target.ref.parameter)
        clean = parameter.detach().clone()
        with edited(lm, null(zero(target.entries(lm)))):
            moved = parameter.detach() != clean
        assert target.of(moved).all()
        assert moved.sum() == target.weight(lm).numel()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_offloaded_or_not_the_coins_are_the_same(architecture, tmp_path) -> None:
    from accelerate import disk_offload

    here, lm = loud(tiny(architecture, dtype=torch.bfloat16)), loud(tiny(architecture, dtype=torch.bfloat16))
    disk_offload(lm.model.get_submodule(lm.anatomy.layers[1].block), tmp_path)
    name = here.anatomy.layers[1].writers[0].parameter
    assert lm.model.get_parameter(name).is_meta
    edits = null(scale([whole(here, name), channel(here, 1, 3), neuron(here, 1, 2), entry(here, 1, 3, 4)], 3.0))
    clean, outputs = logits(here).float(), []
    for model in (here, lm):
        with edited(model, edits):
            outputs.append(logits(model).float())
    away, apart = ((one - outputs[0]).abs().mean() for one in (clean, outputs[1]))
    assert apart < 0.2 * away


def test_weights_that_are_tied_move_together() -> None:
    lm = tiny("gemma2", dtype=torch.bfloat16)
    edits = zero(Weights(parameter="lm_head.weight", entries=((5, None),)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert all((stream.first, stream.last) == (-1, 3) for stream in null_streams(lm, edits))
        with edited(lm, null(edits)):
            assert lm.model.get_input_embeddings().weight is lm.model.get_output_embeddings().weight


def test_a_null_edit_is_written_read_and_refused() -> None:
    lm = tiny("llama")
    edits = null(zero([entry(lm, 0, 1, 2), neuron(lm, 1, 3)]), 5)
    assert from_json(EditList, to_json(EditList(edits=edits))).edits == edits == null(edits, 5)
    assert len({edits_hash(null(edits, seed)) for seed in range(3)}) == 3
    with pytest.raises(NotApplicable, match=r"an edit of query\[0\] has no null edit"):
        null([*edits, *zero(dims(lm, ["query"], [0]))])
    lm.model.model.layers[0].mlp.down_proj.weight = torch.nn.Parameter(torch.zeros(32, 48, dtype=torch.int8), False)
    with pytest.raises(StudfinderError, match="quantised"):
        null_streams(lm, edits)

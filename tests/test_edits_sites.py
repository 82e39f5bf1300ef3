"""The laws for edits of activations: exactly the named entries change, padding counts for nothing, nothing is left."""

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
    AboveLambda,
    Activations,
    Coordinates,
    Edit,
    EditList,
    Everything,
    LargestEntry,
    MatchedDims,
    RandomDims,
    TopDims,
    constant_only,
    deviation_only,
    dims,
    edited,
    edits_hash,
    entry,
    layer_of,
    massive_value_disruption,
    mean,
    noise,
    restore,
    restore_output,
    scale,
    set_to,
    shuffle,
    zero,
)
from studfinder.errors import StudfinderError
from studfinder.measures import effects_of
from studfinder.measures.likelihood import log_likelihoods
from studfinder.models import LM, rotary_of
from studfinder.records import MassiveActivation, MassiveValue, SuperWeight, from_json, to_json
from studfinder.sites import AttentionCall, ModelCall, Site, capture, replacing, tapped
from tiny import ARCHITECTURES, D, H, L, tiny, token_ids

G = 2
PADDED = torch.ones(3, 12, dtype=torch.long)
PADDED[1, :4] = 0
PADDED[2, 7:] = 0


def logits(lm: LM, ids: torch.Tensor | None = None, mask: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return lm.model(token_ids() if ids is None else ids, attention_mask=mask, use_cache=False).logits


def attention_layer(lm: LM) -> int:
    return next(i for i, layer in enumerate(lm.anatomy.layers) if layer.attention is not None)


def sites_of(lm: LM) -> list[str]:
    """One site of every kind whose entries can be edited in this model."""
    layer = attention_layer(lm)
    stages = {"pre-RoPE": [".pre_rope"], "post-RoPE": ["", ".pre_rope"], "no RoPE": [""]}[lm.anatomy.stage]
    names = ["embedding", f"residual[{layer}]", f"value[{layer}]"]
    names += [f"{tensor}{stage}[{layer}]" for tensor in ("query", "key") for stage in stages]
    writers = lm.anatomy.layers[layer].writers
    plain = next((w for w, ref in enumerate(writers) if ref.expert is None), None)
    if plain is not None:
        names += [str(Site(f"down_proj.{end}", layer, plain)) for end in ("input", "output")]
    return names


def rows(tensor: torch.Tensor, batch: int) -> torch.Tensor:
    """A captured tensor as (B,H,T,D)."""
    if tensor.dim() == 2:
        tensor = tensor.unflatten(0, (batch, -1))
    return tensor if tensor.dim() == 4 else tensor[:, None]


SELECTIONS = [
    Coordinates((1, 3)),
    Coordinates((2,), 0, (0, 4)),
    TopDims(2),
    TopDims(1, largest=False),
    RandomDims(2, seed=1),
    MatchedDims(1),
    LargestEntry(),
    Everything(),
]


# --- what changes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_edit_changes_its_entries_at_every_site_and_leaves_nothing(architecture: str) -> None:
    lm = tiny(architecture)
    clean = logits(lm)
    for name in sites_of(lm):
        before = capture(lm, token_ids(), [name])[name].clone()
        with edited(lm, zero(Activations(name, Coordinates((1,), None, (0, 2))))):
            after = capture(lm, token_ids(), [name])[name]
            # Before RoPE of a model that turns only some dims the rest come from after RoPE, where all has changed.
            width = rows(after, 2).shape[-1]
            if ".pre_rope" in name and lm.anatomy.stage == "post-RoPE":
                width = 2 * len(rotary_of(lm, attention_layer(lm)).inv_freq)
            old, new = rows(before, 2)[..., :width], rows(after, 2)[..., :width]
            moved = (old != new).nonzero()
            assert set(moved[:, 2].tolist()) == {0, 2}, name
            assert set(moved[:, 3].tolist()) == {1}, name
            assert (new[:, :, [0, 2], 1] == 0).all(), name
            assert not torch.equal(logits(lm), clean), name
        assert torch.equal(logits(lm), clean), name


@given(
    select=st.sampled_from(SELECTIONS),
    kind=st.sampled_from(["query[1]", "key[1]", "value[0]", "residual[1]", "key.pre_rope[2]", "down_proj.output[1]"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    padded=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_scale_by_one_and_restore_after_zero_are_the_identity(select, kind, dtype, padded) -> None:
    lm, ids = tiny("llama", dtype=dtype), token_ids(3, 12)
    mask = PADDED if padded else None
    recorded = {name: tensor.clone() for name, tensor in capture(lm, ids, [kind], mask).items()}
    clean = logits(lm, ids, mask)
    target = Activations(kind, select)
    with edited(lm, scale(target, 1.0)):
        assert torch.equal(logits(lm, ids, mask), clean)
    with edited(lm, zero(target)):
        assert not torch.equal(logits(lm, ids, mask), clean)
    with edited(lm, [*zero(target), *restore(target, recorded)]):
        assert torch.equal(logits(lm, ids, mask), clean)
    assert torch.equal(logits(lm, ids, mask), clean)


@given(a=st.sampled_from([0.5, 2.0, -4.0]), b=st.sampled_from([0.5, -1.0]), select=st.sampled_from(SELECTIONS[:2]))
@settings(max_examples=8, deadline=None)
def test_scales_compose_in_one_block_and_nested(a: float, b: float, select) -> None:
    lm = tiny("qwen3")
    target = Activations(("query[0]", "key[2]"), select)
    with edited(lm, scale(target, a * b)):
        once = logits(lm)
    with edited(lm, [*scale(target, a), *scale(target, b)]):
        assert torch.equal(logits(lm), once)
    with edited(lm, scale(target, a)), edited(lm, scale(target, b)):
        assert torch.equal(logits(lm), once)


def test_means_are_over_the_real_tokens_of_each_row() -> None:
    lm, ids = tiny("llama"), token_ids(3, 12)
    clean = capture(lm, ids, ["query[0]"], PADDED)["query[0]"].clone()
    target = Activations("query[0]", Coordinates((1, 5), 2))
    seen = {}
    for name, edits in {
        "mean": mean(target),
        "pooled": mean(target, pooled=True),
        "deviation": deviation_only(target),
    }.items():
        with edited(lm, edits):
            seen[name] = capture(lm, ids, ["query[0]"], PADDED)["query[0]"].clone()
    for row in range(3):
        real = PADDED[row].bool()
        before = clean[row, 2][real][:, [1, 5]]
        average = before.mean(dim=0)
        close = {"atol": 1e-6, "rtol": 1e-5}
        torch.testing.assert_close(seen["mean"][row, 2][real][:, [1, 5]], average.expand_as(before), **close)
        pooled = before.mean().expand_as(before)
        torch.testing.assert_close(seen["pooled"][row, 2][real][:, [1, 5]], pooled, **close)
        torch.testing.assert_close(seen["deviation"][row, 2][real][:, [1, 5]], before - average, **close)
        for changed in seen.values():
            other = [d for d in range(D) if d not in (1, 5)]
            assert torch.equal(changed[row, 2][:, other], clean[row, 2][:, other])
            assert torch.equal(changed[row, [0, 1, 3]], clean[row, [0, 1, 3]])
            assert torch.equal(changed[row, 2][~real], clean[row, 2][~real])  # padding is left as it is
    assert edits_hash(constant_only(target)) == edits_hash(mean(target))


def test_constant_and_deviation_add_up() -> None:
    lm = tiny("llama")
    target = Activations("key.pre_rope[1]", TopDims(2))
    clean = capture(lm, token_ids(), ["key.pre_rope[1]"])["key.pre_rope[1]"].clone()
    with edited(lm, zero(target)):
        without = capture(lm, token_ids(), ["key.pre_rope[1]"])["key.pre_rope[1]"].clone()
    parts = []
    for edits in (constant_only(target), deviation_only(target)):
        with edited(lm, edits):
            parts.append(capture(lm, token_ids(), ["key.pre_rope[1]"])["key.pre_rope[1]"] - without)
    torch.testing.assert_close(parts[0] + parts[1], clean - without, atol=1e-6, rtol=1e-5)


# --- selections ---------------------------------------------------------------------------------------------------


def zeroed(lm: LM, name: str, select, ids: torch.Tensor | None = None, mask: torch.Tensor | None = None):
    """M of the clean site and the dims that an edit zeroes, both (B,H,D)."""
    ids = token_ids() if ids is None else ids
    real = torch.ones_like(ids) if mask is None else mask
    clean = rows(capture(lm, ids, [name], mask)[name].clone(), len(ids))
    with edited(lm, zero(Activations(name, select))):
        after = rows(capture(lm, ids, [name], mask)[name], len(ids))
    norm = (clean * real[:, None, :, None]).float().square().sum(dim=2).sqrt()
    return norm, (after != clean).any(dim=2)


@pytest.mark.parametrize("name", ["query[1]", "key[1]", "value[0]", "key.pre_rope[2]"])
def test_top_smallest_and_matched_dims_by_hand(name: str) -> None:
    lm, ids = tiny("llama"), token_ids(3, 12)
    norm, top = zeroed(lm, name, TopDims(2), ids, PADDED)
    ranks = norm.argsort(dim=-1, descending=True).argsort(dim=-1)
    assert torch.equal(top, ranks < 2)
    assert torch.equal(zeroed(lm, name, TopDims(1, largest=False), ids, PADDED)[1], ranks == D - 1)
    assert torch.equal(zeroed(lm, name, MatchedDims(2), ids, PADDED)[1], (ranks >= 2) & (ranks < 4))
    chosen = zeroed(lm, name, RandomDims(2, seed=3), ids, PADDED)[1]
    assert (chosen.sum(dim=-1) == 2).all()
    assert not (chosen & top).any()
    assert torch.equal(chosen, zeroed(lm, name, RandomDims(2, seed=3), ids, PADDED)[1])
    assert not torch.equal(chosen, zeroed(lm, name, RandomDims(2, seed=4), ids, PADDED)[1])


def test_dims_of_the_same_band_are_near_in_frequency_and_never_the_same_pair() -> None:
    config = {"head_dim": 32}
    from transformers import AutoConfig, AutoModelForCausalLM

    from studfinder.models import load
    from tiny import CONFIGS

    torch.manual_seed(0)
    lm = load(AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **{**CONFIGS["llama"], **config})).eval())
    norm, chosen = zeroed(lm, "query[1]", MatchedDims(1, by="band", seed=2))
    best = norm.argmax(dim=-1) % 16
    other = chosen.float().argmax(dim=-1) % 16
    assert (chosen.sum(dim=-1) == 1).all()
    assert ((best - other).abs() == 1).all()


def test_a_rotary_band_without_rope_is_refused() -> None:
    lm = tiny("gpt2")
    with pytest.raises(StudfinderError, match="no RoPE"), edited(lm, zero(dims(lm, select=MatchedDims(1, "band")))):
        logits(lm)


def test_above_lambda_takes_what_is_above_it_and_passes_heads_by_that_hold_none() -> None:
    lm = tiny("llama")
    norm, chosen = zeroed(lm, "query[1]", AboveLambda(1.5))
    expected = norm > 1.5 * norm.mean(dim=-1, keepdim=True)
    assert torch.equal(chosen, expected)
    assert not expected.any(dim=-1).all()  # the case that is meant
    with pytest.raises(StudfinderError, match="selected nothing"), edited(lm, zero(dims(lm, select=AboveLambda(7.9)))):
        logits(lm)


def test_the_largest_entry_is_one_of_each_row() -> None:
    lm, ids = tiny("llama"), token_ids(3, 12)
    clean = capture(lm, ids, ["residual[1]"], PADDED)["residual[1]"].clone()
    with edited(lm, zero(Activations("residual[1]", LargestEntry((4, 7))))):
        after = capture(lm, ids, ["residual[1]"], PADDED)["residual[1]"]
    for row in range(3):
        masked = torch.where(PADDED[row].bool()[:, None], clean[row].abs(), torch.zeros(()))
        moved = (after[row] != clean[row]).nonzero().tolist()
        (place,) = moved
        assert place[1] in (4, 7)
        assert float(masked[tuple(place)]) == float(masked[:, [4, 7]].max())


def test_positions_count_real_tokens() -> None:
    lm, ids = tiny("llama"), token_ids(3, 12)
    clean = capture(lm, ids, ["residual[0]"], PADDED)["residual[0]"].clone()
    with edited(lm, zero(Activations("residual[0]", Coordinates((2,), None, (0, 6))))):
        after = capture(lm, ids, ["residual[0]"], PADDED)["residual[0]"]
    moved = (after != clean)[..., 2]
    assert [row.nonzero()[:, 0].tolist() for row in moved] == [[0, 6], [4, 10], [0, 6]]


# --- values -------------------------------------------------------------------------------------------------------


def test_set_to_takes_a_number_a_list_and_a_map() -> None:
    lm, name = tiny("llama"), "query[1]"
    target = Activations(name, Coordinates((1, 4)))
    top = Activations(name, TopDims(1))
    map_HD = torch.arange(H * D).float().reshape(H, D)
    for where, values, expected in [
        (target, 2.5, {1: 2.5, 4: 2.5}),
        (target, [2.0, -3.0], {1: 2.0, 4: -3.0}),
        (target, map_HD[1], {1: float(map_HD[1, 1]), 4: float(map_HD[1, 4])}),
    ]:
        with edited(lm, set_to(where, values)):
            after = capture(lm, token_ids(), [name])[name]
        for dim, value in expected.items():
            assert (after[..., dim] == value).all()
    _, chosen = zeroed(lm, name, TopDims(1))
    with edited(lm, set_to(top, map_HD)):
        after = capture(lm, token_ids(), [name])[name]
    expected_BHTD = map_HD[None, :, None, :].expand_as(after)
    where_BHTD = chosen[:, :, None, :].expand_as(after)
    assert torch.equal(after[where_BHTD], expected_BHTD[where_BHTD])
    with pytest.raises(StudfinderError, match="values of shape"), edited(lm, set_to(target, [1.0, 2.0, 3.0])):
        logits(lm)
    for bad in ([], [float("nan")]):
        with pytest.raises(StudfinderError, match="finite"):
            set_to(target, bad)


def test_shuffle_moves_whole_tokens_and_keeps_padding_out() -> None:
    lm, ids, name = tiny("llama"), token_ids(3, 12), "value[1]"
    clean = capture(lm, ids, [name], PADDED)[name].clone()
    with edited(lm, shuffle(Activations(name, Everything()), seed=1)):
        after = capture(lm, ids, [name], PADDED)[name].clone()
    for row in range(3):
        real = PADDED[row].bool()
        old, new = clean[row][:, real].transpose(0, 1).flatten(1), after[row][:, real].transpose(0, 1).flatten(1)
        assert not torch.equal(old, new)
        assert sorted(map(tuple, old.tolist())) == sorted(map(tuple, new.tolist()))
        assert torch.equal(clean[row][:, ~real], after[row][:, ~real])


def test_noise_is_as_strong_as_it_says_and_keeps_to_its_position() -> None:
    lm, ids, name = tiny("llama"), token_ids(1, 120), "residual[0]"
    clean = capture(lm, ids, [name])[name].clone()
    target = Activations(name, Everything())
    with edited(lm, noise(target, 0.5, seed=2)):
        after = capture(lm, ids, [name])[name].clone()
    ratio = (after - clean).square().mean(dim=1).sqrt() / clean.square().mean(dim=1).sqrt()
    assert abs(float(ratio.mean()) - 0.5) < 0.03
    pushed = (after - clean) / clean.square().mean(dim=1, keepdim=True).sqrt()
    with edited(lm, noise(target, 0.5, seed=2)):
        short = capture(lm, ids[:, :40], [name])[name]
    short_clean = clean[:, :40]
    short_pushed = (short - short_clean) / short_clean.square().mean(dim=1, keepdim=True).sqrt()
    torch.testing.assert_close(short_pushed, pushed[:, :40], atol=1e-4, rtol=1e-3)
    with edited(lm, noise(target, 0.5, seed=3)):
        assert not torch.equal(capture(lm, ids, [name])[name], after)


# --- batches ------------------------------------------------------------------------------------------------------

EDITS = {
    "zero": lambda target: zero(target),
    "mean": lambda target: mean(target),
    "pooled": lambda target: mean(target, pooled=True),
    "deviation": lambda target: deviation_only(target),
    "shuffle": lambda target: shuffle(target, 1),
    "noise": lambda target: noise(target, 0.3, 1),
}


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("value", EDITS)
def test_results_do_not_depend_on_the_batch(value: str, left: bool) -> None:
    lm = tiny("llama")
    lengths = (12, 7, 9)
    prompts = [token_ids(1, n, seed=n) for n in lengths]
    ids = torch.zeros(3, 12, dtype=torch.long)
    mask = torch.zeros(3, 12, dtype=torch.long)
    places = [slice(12 - n, 12) if left else slice(0, n) for n in lengths]
    for row, (prompt, place) in enumerate(zip(prompts, places, strict=True)):
        ids[row, place], mask[row, place] = prompt, 1
    position_ids = (mask.cumsum(dim=1) - 1).clamp_min(0)
    for name in ("query[0]", "key[1]", "residual[0]", "value[1]", "down_proj.input[0]"):
        for select in (TopDims(1), RandomDims(2), MatchedDims(1), Coordinates((1,), None, (0, 3)), LargestEntry()):
            with edited(lm, EDITS[value](Activations(name, select))), torch.no_grad():
                together = lm.model(ids, attention_mask=mask, position_ids=position_ids, use_cache=False).logits
                alone = [logits(lm, prompt) for prompt in prompts]
            for row, place in enumerate(places):
                torch.testing.assert_close(together[row, place], alone[row][0], atol=2e-5, rtol=1e-4)


# --- decoding -----------------------------------------------------------------------------------------------------


def steps(lm: LM, ids: torch.Tensor, count: int, replace) -> tuple[list[int], torch.Tensor]:
    """Greedy tokens and their logits, from a loop that edits by hand; `replace(step)` gives the replacements."""
    tokens, seen, past = [], [], None
    given = ids
    for step in range(count):
        with tapped(lm, replace=replace(step)), torch.no_grad():
            output = lm.model(given, past_key_values=past, use_cache=True)
        past, given = output.past_key_values, output.logits[:, -1:].argmax(dim=-1)
        tokens.append(int(given))
        seen.append(output.logits[0, -1])
    return tokens, torch.stack(seen)


@pytest.mark.parametrize("cache", ["touched", "clean"])
@pytest.mark.parametrize("when", ["prefill", "always"])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3_text"])
def test_greedy_decoding_equals_a_loop_that_does_the_same_by_hand(architecture, when, cache) -> None:
    lm, ids = tiny(architecture, seed=3), token_ids(1, 11, seed=5)
    clean = {}
    names = [f"{tensor}[{layer}]" for layer in range(L) for tensor in ("query", "key")]
    kept: dict[str, tuple] = {}

    def pooled(name: str, x: torch.Tensor, step: int) -> torch.Tensor:
        if step == 0:
            best = x.square().sum(dim=2).topk(1, dim=-1).indices
            kept[name] = best, x.gather(3, best[:, :, None].expand(-1, -1, x.shape[2], -1)).mean(dim=2)
        best, average = kept[name]
        return x.scatter(
            3, best[:, :, None].expand(-1, -1, x.shape[2], -1), average[:, :, None].expand(-1, -1, x.shape[2], -1)
        )

    def by_hand(name: str, step: int):
        def replace(tensor: torch.Tensor) -> torch.Tensor:
            new = 11 if step == 0 else 1
            if step and when == "prefill":
                return tensor
            changed = tensor.clone()
            changed[:, :, -new:] = pooled(name, tensor[:, :, -new:].clone(), step)
            if cache == "touched" and name.startswith("key"):
                tensor.copy_(changed)
                return tensor
            return changed

        return replace

    expected = steps(lm, ids, 8, lambda step: {Site.parse(name): by_hand(name, step) for name in names})
    edits = [
        edit
        for name in names
        for edit in mean(
            Activations(name, TopDims(1)), pooled=True, when=when, cache=cache if name.startswith("key") else "touched"
        )
    ]
    clean = steps(lm, ids, 8, lambda step: {})
    with edited(lm, edits):
        found = lm.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=-1,
            output_logits=True,
            return_dict_in_generate=True,
        )
    assert found.sequences[0, 11:].tolist() == expected[0]
    seen = torch.cat(found.logits)
    torch.testing.assert_close(seen, expected[1], atol=1e-5, rtol=1e-4)
    changed = (seen - clean[1]).abs().amax(dim=1)
    # Only the last position of the prompt and later ones are seen here; a clean cache hides the keys from all of these.
    assert (changed > 1e-4).sum() >= (1 if when == "prefill" and cache == "clean" else 4), changed
    if when == "prefill":
        assert edits_hash(edits) == edits_hash(massive_value_disruption(lm, 1, cache=cache))


def test_the_cache_modes_differ_in_what_later_steps_see() -> None:
    lm, ids = tiny("llama"), token_ids(1, 10)
    seen: dict[str, torch.Tensor] = {}
    clean = capture(lm, ids, ["key[1]"])["key[1]"].clone()
    for cache in ("touched", "clean"):
        keys: list[torch.Tensor] = []
        with (
            edited(lm, zero(Activations("key[1]", Coordinates((3,))), when="prefill", cache=cache)),
            tapped(
                lm,
                read={AttentionCall: [lambda e, keys=keys: keys.append(e.key_BGSD.clone()) if e.layer == 1 else None]},
            ),
            torch.no_grad(),
        ):
            past = lm.model(ids, use_cache=True).past_key_values
            lm.model(ids[:, :1], past_key_values=past)
        assert (keys[0][..., 3] == 0).all()
        seen[cache] = keys[1][:, :, :10]
    assert (seen["touched"][..., 3] == 0).all()
    assert torch.equal(seen["clean"], clean)


def test_a_step_without_a_prompt_has_no_statistics() -> None:
    lm, ids = tiny("llama"), token_ids(1, 6)
    with torch.no_grad():
        past = lm.model(ids, use_cache=True).past_key_values
        with pytest.raises(StudfinderError, match="seen no prompt"), edited(lm, mean(dims(lm))):
            lm.model(ids[:, :1], past_key_values=past)
    with pytest.raises(StudfinderError, match="selected nothing"), edited(lm, mean(dims(lm), when="prefill")):
        logits(lm, ids[:, :1])


def test_fixed_caches_are_refused() -> None:
    from transformers import StaticCache

    lm = tiny("llama")
    cache = StaticCache(config=lm.model.config, max_cache_len=32)
    with pytest.raises(StudfinderError, match="fixed size"), edited(lm, mean(dims(lm))), torch.no_grad():
        lm.model(token_ids(1, 6), past_key_values=cache)


@pytest.mark.parametrize("value", ["mean", "pooled", "noise", "zero"])
def test_generation_in_a_padded_batch_is_that_of_each_prompt_alone(value: str) -> None:
    lm = tiny("llama")
    prompts = [token_ids(1, n, seed=n) for n in (10, 6)]
    ids, mask = torch.zeros(2, 10, dtype=torch.long), torch.zeros(2, 10, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, 10 - prompt.shape[1] :], mask[row, 10 - prompt.shape[1] :] = prompt, 1
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": -1}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    target = Activations(("query[0]", "key[1]", "residual[1]"), TopDims(2))
    with edited(lm, EDITS[value](target)):
        together = torch.stack(lm.model.generate(ids, attention_mask=mask, **options).logits)
        alone = [
            torch.stack(lm.model.generate(prompt, attention_mask=torch.ones_like(prompt), **options).logits)[:, 0]
            for prompt in prompts
        ]
    clean = torch.stack(lm.model.generate(ids, attention_mask=mask, **options).logits)
    for row in range(2):
        torch.testing.assert_close(together[:, row], alone[row], atol=2e-5, rtol=1e-4)
        assert not torch.allclose(clean[:, row], alone[row], atol=1e-3)


# --- findings -----------------------------------------------------------------------------------------------------


def test_findings_become_edits_of_their_place() -> None:
    activation = MassiveActivation(
        layer=1, dim=4, prompt=0, position=2, token="", token_class="first", value=1, median=1, ratio=1
    )
    values = [MassiveValue(layer=0, tensor="key", head=1, dim=d, norm=1, ratio=1) for d in (3, 5)]
    edits = zero([activation, *values])
    assert [(e.site, e.where) for e in edits] == [
        ("residual[1]", Coordinates((4,), None, (2,))),
        ("key[0]", Coordinates((3, 5), 1)),
    ]


def super_weight(lm: LM, layer: int, row: int, col: int) -> SuperWeight:
    ref = lm.anatomy.layers[layer].writers[0]
    index = ref.index(row, col)
    value = float(lm.model.get_parameter(ref.parameter).detach()[index])
    return SuperWeight(
        layer=layer, parameter=ref.parameter, index=index, checkpoint_tensor=None, checkpoint_index=None, expert=None,
        row=row, col=col, value=value, input_spike=0, output_spike=0, share=0, score=0, prompt=0, position=0, token="",
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gpt_neox"])
def test_a_super_activation_comes_back_without_its_weight(architecture: str, dtype: torch.dtype) -> None:
    lm, ids, name = tiny(architecture, dtype=dtype), token_ids(3, 12), "down_proj.output[1]"
    ref = lm.anatomy.layers[1].writers[0]
    with torch.no_grad():
        lm.model.get_parameter(ref.parameter)[ref.index(3, 4)] = 30.0
    found = super_weight(lm, 1, 3, 4)
    clean = rows(capture(lm, ids, [name], PADDED)[name].clone(), 3)[:, 0]
    with edited(lm, zero(found)):
        without = rows(capture(lm, ids, [name], PADDED)[name].clone(), 3)[:, 0]
    masked = clean[..., 3].abs().float() * PADDED
    where = masked.argmax(dim=1)
    for row in range(3):  # one prompt at a time, as recorded
        prompt = ids[row : row + 1, PADDED[row].bool()]
        recorded = {name: capture(lm, prompt, [name])[name].clone()}
        alone = rows(recorded[name], 1)[0, 0]
        position = int(alone[:, 3].abs().argmax())
        at = Activations(name, Coordinates((3,), None, (position,)))
        with edited(lm, [*zero(found), *restore(at, recorded)]):
            back = rows(capture(lm, prompt, [name])[name], 1)[0, 0]
        assert back[position, 3] == alone[position, 3]
        with edited(lm, zero(found)):
            rest = rows(capture(lm, prompt, [name])[name].clone(), 1)[0, 0]
        rest[position, 3] = alone[position, 3]
        assert torch.equal(back, rest)
    for edits in ([*zero(found), *restore_output(lm, found)], restore_output(lm, [found])):
        with edited(lm, edits):
            back = rows(capture(lm, ids, [name], PADDED)[name].clone(), 3)[:, 0]
        rest = without if len(edits) == 2 else clean
        for row in range(3):
            torch.testing.assert_close(back[row, where[row], 3], clean[row, where[row], 3], atol=0.02, rtol=0.01)
            moved = (back[row] != rest[row]).nonzero().tolist()
            assert moved in ([[int(where[row]), 3]], [])
    with edited(lm, zero(found)), edited(lm, restore_output(lm, found)):  # nested: the clean weight is in the record
        assert (
            torch.equal(
                rows(capture(lm, ids, [name], PADDED)[name], 3)[:, 0][range(3), where, 3], back[range(3), where, 3]
            )
            or dtype == torch.bfloat16
        )


# --- records ------------------------------------------------------------------------------------------------------


def every_edit() -> list[Edit]:
    target = Activations("query[0]", TopDims(2))
    edits: list[Edit] = [*zero(entry(tiny("llama"), 0, 1, 2))]
    edits += [e for select in SELECTIONS for e in zero(Activations("key[1]", select))]
    edits += [*mean(target, pooled=True, when="prefill"), *mean(Activations("key[0]", AboveLambda(4.0)), cache="clean")]
    edits += [*deviation_only(target), *set_to(target, [1.0, 2.0]), *shuffle(target, 3), *noise(target, 0.5, 4)]
    edits += restore(target, {"query[0]": torch.tensor([[float("inf"), 1.5]], dtype=torch.bfloat16)})
    edits += restore_output(tiny("llama"), super_weight(tiny("llama"), 0, 1, 2))
    return edits


def test_every_edit_survives_json_and_has_a_hash_of_its_own() -> None:
    edits = every_edit()
    assert from_json(EditList, to_json(EditList(edits=tuple(edits)))).edits == tuple(edits)
    for edit in edits:
        assert from_json(type(edit), to_json(edit)) == edit
    assert len({edits_hash([edit]) for edit in edits}) == len(edits)
    assert len(set(edits)) == len(edits)  # hashable, and all different
    assert edits_hash(edits) != edits_hash(edits[::-1])


def test_a_list_of_another_version_is_refused() -> None:
    text = to_json(EditList(edits=tuple(every_edit()))).replace('"version":1', '"version":2')
    with pytest.raises(StudfinderError, match="version"):
        from_json(EditList, text)


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda lm: zero(Activations((), TopDims(1))), "no site"),
        (lambda lm: edited(lm, zero(Activations("query[9]", TopDims(1)))), "a layer from 0 to 2"),
        (lambda lm: edited(lm, zero(Activations("queries[1]", TopDims(1)))), "not a site"),
        (lambda lm: edited(lm, zero(Activations("query[1]", TopDims(0)))), "1 to 8"),
        (lambda lm: edited(lm, zero(Activations("query[1]", RandomDims(5)))), "1 to 4"),
        (lambda lm: edited(lm, zero(Activations("query[1]", Coordinates((8,))))), "from 0 to 7"),
        (lambda lm: edited(lm, zero(Activations("query[1]", Coordinates(())))), "at least one"),
        (lambda lm: edited(lm, zero(Activations("key[1]", Coordinates((1,), 2)))), "0 to 1"),
        (lambda lm: edited(lm, zero(Activations("residual[1]", Coordinates((1,), None, (-1,))))), "first token is 0"),
        (lambda lm: edited(lm, zero(Activations("query[1]", AboveLambda(0)))), "above 0"),
        (lambda lm: edited(lm, mean(dims(lm, pre_rope=True), cache="clean")), "lies before the cache"),
        (lambda lm: edited(lm, mean(dims(lm, ("query",)), cache="clean")), "lies before the cache"),
        (lambda lm: mean(entry(lm, 0, 1, 2)), "is a weight"),
        (lambda lm: dims(lm, ()), "no dims"),
        (lambda lm: dims(lm, layers=[5]), "a layer from 0 to 2"),
        (lambda lm: restore(dims(lm), {}), "nothing was recorded"),
        (lambda lm: restore_output(lm, []), "nothing to restore"),
        (lambda lm: noise(dims(lm), -1.0), "0 or more"),
    ],
)
def test_what_cannot_be_edited_is_an_error(make, words) -> None:
    with pytest.raises(StudfinderError, match=words):
        make(tiny("llama"))


def test_positions_beyond_the_text_and_other_inputs_are_errors() -> None:
    lm = tiny("llama")
    with (
        pytest.raises(StudfinderError, match="not in a text of 12"),
        edited(lm, zero(Activations("residual[1]", Coordinates((1,), None, (0, 12))))),
    ):
        logits(lm)
    recorded = capture(lm, token_ids(1, 5), ["query[0]"])
    with (
        pytest.raises(StudfinderError, match="the same input"),
        edited(lm, restore(Activations("query[0]", TopDims(1)), recorded)),
    ):
        logits(lm)
    with pytest.raises(StudfinderError, match="mask"), edited(lm, mean(dims(lm))):
        logits(lm, mask=torch.zeros(2, 1, 12, 12))


@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss"])
def test_outputs_of_experts_are_refused(architecture: str) -> None:
    lm = tiny(architecture)
    with pytest.raises(StudfinderError, match="expert"):
        edited(lm, zero(Activations("down_proj.output[1,2]", Coordinates((1,), None, (0,)))))


# --- nothing is left ----------------------------------------------------------------------------------------------


def test_an_interrupt_that_was_swallowed_is_not_lost() -> None:
    """After it the model is the clean one, so the block may not end as if it had been edited all along."""
    lm = tiny("llama")
    clean = logits(lm, token_ids(1, 6))
    for edits in (zero(entry(lm, 1, 3, 4)), mean(dims(lm))):
        with pytest.raises(KeyboardInterrupt), edited(lm, edits):
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
            except KeyboardInterrupt:
                pass
            assert torch.equal(logits(lm, token_ids(1, 6)), clean)
        assert not replacing(lm)


# An interrupt that arrives inside somebody's callback of the garbage collector is printed, not raised.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_random_edits_leave_nothing() -> None:
    """Weights and sites together; some blocks end by themselves, some by an exception, some by Ctrl-C."""
    chance = random.Random(1)
    models = [tiny(name) for name in ("llama", "gpt2", "gemma3_text")]
    ids = token_ids(1, 6)
    clean = [logits(lm, ids) for lm in models]
    handler = signal.getsignal(signal.SIGINT)
    interrupted = failed = 0
    for number in range(250):
        lm = models[number % len(models)]
        name = chance.choice(sites_of(lm))
        edits: list[Edit] = [*zero(entry(lm, 1, 3, 4)), *mean(Activations(name, TopDims(1)))]
        ending = chance.choice(["plain", "exception", "nested", "interrupt", "interrupt"])
        timer = None
        try:
            if ending == "interrupt":
                delay = chance.uniform(0, 6e-3)
                timer = threading.Thread(target=lambda d=delay: (time.sleep(d), os.kill(os.getpid(), signal.SIGINT)))
                timer.start()
            with edited(lm, edits):
                logits(lm, ids)
                if ending == "exception":
                    raise RuntimeError
                if ending == "nested":
                    with edited(lm, zero(Activations("value[0]", TopDims(1)))):
                        logits(lm, ids)
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
        assert not replacing(lm)
        assert signal.getsignal(signal.SIGINT) is handler
        if number % 5 == 0 or ending == "interrupt":
            assert torch.equal(logits(lm, ids), clean[number % len(models)]), f"edit {number}, {ending}"
    assert interrupted > 50
    assert failed > 20


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_inside_a_pass_ends_the_edit(error) -> None:
    lm = tiny("llama")
    clean = logits(lm)

    def stop(_event) -> None:
        raise error

    with pytest.raises(error), edited(lm, mean(dims(lm))), tapped(lm, read={AttentionCall: [stop]}):
        logits(lm)
    assert not replacing(lm)
    assert torch.equal(logits(lm), clean)


def test_reading_inside_an_edit_changes_nothing_and_sees_the_edit() -> None:
    lm, seen = tiny("llama"), []
    with edited(lm, zero(Activations("query[1]", Coordinates((2,))))):
        assert replacing(lm)
        changed = logits(lm)
        with tapped(lm, read={AttentionCall: [seen.append], ModelCall: [seen.append]}, pre_rope=True):
            assert torch.equal(logits(lm), changed)
    assert isinstance(seen[0], ModelCall)
    assert (seen[0].batch, seen[0].tokens, seen[0].past, seen[0].caching) == (2, 12, 0, False)
    assert (seen[2].query_BHTD[..., 2] == 0).all()


def test_a_decoder_that_is_called_by_itself_is_edited_too() -> None:
    lm, ids = tiny("llama"), token_ids(3, 12)
    decoder = lm.model.get_submodule(lm.anatomy.decoder)
    with edited(lm, mean(dims(lm))), torch.no_grad():
        hidden = decoder(ids, attention_mask=PADDED, use_cache=False).last_hidden_state
        expected = lm.model(ids, attention_mask=PADDED, use_cache=False, output_hidden_states=True).hidden_states[-1]
        rope = lm.model.model.rotary_emb(hidden, torch.arange(12)[None])
    with pytest.raises(StudfinderError, match="by itself"), edited(lm, mean(dims(lm))):
        lm.model.model.layers[0](hidden, position_embeddings=rope)
    assert torch.equal(hidden, expected)


def test_continuations_scored_in_batches_are_those_scored_alone_under_an_edit() -> None:
    lm = tiny("llama")
    prefix = token_ids(1, 40, seed=1)[0].tolist()  # long enough to be shared, were nothing being replaced
    requests = [
        (prefix + token_ids(1, n, seed=n)[0].tolist(), token_ids(1, 3, seed=90 + n)[0].tolist()) for n in (2, 5, 9)
    ]
    # A mean over tokens, which a prefix read once for all would change.
    with edited(lm, mean(Activations(("residual[0]", "value[1]"), TopDims(4)))):
        together = log_likelihoods(lm, requests)
        alone = [log_likelihoods(lm, [request])[0] for request in requests]
    clean = log_likelihoods(lm, requests)
    for one, other, before in zip(together, alone, clean, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert abs(one.logprob - before.logprob) > 1e-3


# --- sweeps -------------------------------------------------------------------------------------------------------


def test_a_sweep_that_reuses_clean_blocks_equals_full_passes() -> None:
    lm = tiny("llama")
    windows = [token_ids(1, n, seed=n)[0].tolist() for n in (12, 12, 9)]
    places = ["embedding", "residual[0]", "residual[1]", "residual[2]", "query[2]", "value[1]", "key.pre_rope[1]"]
    variants = [scale(Activations(name, TopDims(1)), 30.0) for name in places]
    assert [layer_of(lm, edits) for edits in variants] == [0, 1, 2, 3, 2, 1, 1]
    swept = effects_of(lm, windows, variants)
    for number, edits in enumerate(variants):
        for window, ids in enumerate(windows):
            clean = logits(lm, torch.tensor([ids]))[0, :-1].log_softmax(dim=-1)
            with edited(lm, edits):
                changed = logits(lm, torch.tensor([ids]))[0, :-1].log_softmax(dim=-1)
            kl = float((clean.exp() * (clean - changed)).sum())
            assert kl > 1e-6
            assert abs(swept.kl[number, window] - kl) < 1e-4 * max(1, kl)
    # Inside another edit of a site nothing may be passed by.
    with edited(lm, scale(Activations("residual[1]", Everything()), 1.5)):
        inside = effects_of(lm, windows, [variants[4]])
        clean = logits(lm, torch.tensor([windows[0]]))[0, :-1].log_softmax(dim=-1)
        with edited(lm, variants[4]):
            changed = logits(lm, torch.tensor([windows[0]]))[0, :-1].log_softmax(dim=-1)
    assert abs(inside.kl[0, 0] - float((clean.exp() * (clean - changed)).sum())) < 1e-4

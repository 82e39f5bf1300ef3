"""Sequences read as a tree: each sees its own beginning and nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from studfinder.measures.packs import additive, packed
from tiny import tiny

SEQUENCES = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=9), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(SEQUENCES, st.integers(0, 4), st.integers(1, 30))
def test_every_sequence_finds_itself_and_sees_itself_alone(sequences, start, size):
    sequences = [[7] * start + sequence for sequence in sequences]
    packs = list(packed(sequences, start, size))
    assert sorted(number for pack in packs for number in pack.paths) == list(range(len(sequences)))
    for pack in packs:
        assert len(pack.ids) <= max(size, *(len(sequences[i]) - start for i in pack.paths))
        seen = pack.visible(len(pack.ids) + 1)
        assert seen[-1].nonzero()[:, 0].tolist() == [len(pack.ids)]  # padding
        for number, path in pack.paths.items():
            assert [pack.ids[i] for i in path] == sequences[number][start:]
            assert [pack.depths[i] for i in path] == list(range(start, len(sequences[number])))
            for depth, place in enumerate(path):
                assert seen[place].nonzero()[:, 0].tolist() == sorted(path[: depth + 1])
        if pack.straight:
            assert torch.equal(seen[:-1, :-1], torch.ones(len(pack.ids), len(pack.ids)).tril().bool())


@settings(max_examples=100, deadline=None)
@given(SEQUENCES)
def test_in_one_pack_no_beginning_is_read_twice(sequences):
    (pack,) = packed(sequences, 0, 10_000)
    assert len(pack.ids) == len({tuple(one[: end + 1]) for one in sequences for end in range(len(one))})


def test_nothing_to_pack():
    assert list(packed([], 0, 10)) == []


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
def test_the_mask_makes_them_apart_behind_a_cache_too(architecture):
    from transformers import DynamicCache

    model = tiny(architecture).model
    begin, sequences = [5, 6, 7], [[5, 6, 7, 8, 9], [5, 6, 7, 8, 10], [5, 6, 7, 11]]
    (pack,) = packed(sequences, 3, 99)
    assert pack.ids == [8, 9, 10, 11]
    with torch.no_grad():
        cache = DynamicCache()
        model(torch.tensor([begin]), past_key_values=cache)
        logits = model(
            torch.tensor([pack.ids]),
            attention_mask=additive([pack], 4, 3, torch.float32),
            position_ids=torch.tensor([pack.depths]),
            past_key_values=cache,
        ).logits[0]
        for number, sequence in enumerate(sequences):
            alone = model(torch.tensor([sequence]), use_cache=False).logits[0, 3:]
            torch.testing.assert_close(logits[pack.paths[number]], alone, atol=1e-5, rtol=1e-5)

"""Which token is the likeliest, and how likely one is: as log_softmax and argmax say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from studfinder.measures.scorer import at_targets


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 30),
    st.integers(2, 40),
    st.integers(1, 60),
    st.integers(1, 50),
    st.integers(0, 10_000),
    st.booleans(),
)
def test_pieces_of_the_vocabulary_agree_with_the_whole(positions, vocabulary, targets, step, seed, coarse):
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(positions, vocabulary, generator=generator)
    if coarse:  # as in bf16, where the two likeliest tokens often tie
        logits = logits.round().bfloat16()
    which = torch.randint(positions, (targets,), generator=generator)
    target = torch.randint(vocabulary, (targets,), generator=generator)
    target[::2] = logits.float().argmax(-1)[which][::2]
    pieces = [logits[:, begin : begin + step].clone() for begin in range(0, vocabulary, step)]
    log_p, greedy = at_targets(pieces, target, which)
    expected = logits.double().log_softmax(-1)[which, target]
    assert log_p.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert torch.equal(greedy, logits.float().argmax(-1)[which] == target)

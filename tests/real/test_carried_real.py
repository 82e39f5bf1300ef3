"""The built-in model, stored in bfloat16 and computed in float32 block by block: the same numbers in less memory."""

from __future__ import annotations

import pytest
import torch

import studfinder as sf
from studfinder.edits import zero
from studfinder.measures import effects_of
from studfinder.models import content_hash
from studfinder.texts import encode, proof_text

pytestmark = pytest.mark.real


def test_smollm2_is_the_same_in_half_of_the_memory_of_its_blocks() -> None:
    whole, lm = (sf.load("smollm2", dtype="float32", carried=carried) for carried in (False, True))
    windows = [ids[:96] for ids in encode(lm, proof_text())[0][:2]]
    edits = [zero(sf.edits.entry(lm, 11, 507, 1229)), zero(sf.edits.neuron(lm, 3, 7))]
    ours, theirs = (effects_of(one, windows, edits) for one in (lm, whole))
    assert ours.kl.tolist() == theirs.kl.tolist()
    assert ours.clean_nll.tolist() == theirs.clean_nll.tolist()
    with torch.no_grad():
        logits = [one.model(input_ids=torch.tensor(windows)).logits for one in (lm, whole)]
    assert torch.equal(*logits)
    blocks = [
        sum(one.nbytes for name, one in model.model.named_parameters() if ".layers." in name) for model in (lm, whole)
    ]
    assert blocks[0] < 0.51 * blocks[1]
    assert content_hash(lm) == content_hash(whole) == content_hash(sf.load("smollm2"))

"""The built-in model, quantised: numbers that have to come out again, and the checkpoint in plain transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import studfinder as sf
from builtins_here import REAL_DTYPE
from studfinder.measures.perplexity import perplexity
from studfinder.quantizers import RTN, Clip, Scheme, hold_out, quantized
from studfinder.quantizers.apply import bench_for
from studfinder.quantizers.transforms import Rebalance
from studfinder.verbs.quantize import quantize

pytestmark = pytest.mark.real

PLAIN = """
import json, sys, torch
sys.modules["studfinder"] = None  # importing it is an error
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    torch.save(model(torch.tensor([json.loads(sys.argv[2])])).logits, sys.argv[3])
"""
IDS = list(range(1000, 1064))


@pytest.fixture(scope="module")
def lm():
    return sf.load("smollm2", dtype=REAL_DTYPE)


def test_the_default_checkpoint_gives_the_logits_of_the_model_in_memory(tmp_path):
    lm = sf.load("smollm2")  # in its own dtype, as the files are
    done = quantize("smollm2", out=tmp_path / "out")
    assert done.bits == 4.3125
    assert done.engines.startswith("transformers ")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", PLAIN, tmp_path / "out", json.dumps(IDS), tmp_path / "logits.pt"]
    subprocess.run(command, check=True, env=environment)
    scheme = Scheme(block=64, zero="integer")
    with quantized(lm, RTN(scheme=scheme)), torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "logits.pt"), lm.model(torch.tensor([IDS])).logits)


@pytest.mark.deep
def test_the_zero_point_matters_and_a_clip_helps_only_what_holds_out(lm, data):
    """Per-channel W4: a float minimum, an integer zero point, a clip search by weight error alone, and the same with
    the largest half percent held out."""

    def after(zero, clip=None, keep=None):
        method = RTN(scheme=Scheme(block="channel", zero=zero), clip=clip)
        with quantized(lm, method, keep=keep):
            return perplexity(lm, "wikitext2", limit=4).value

    floating, integer = after("float"), after("integer")
    alike = Clip(norm=2.4, weight=0.0)
    clipped, kept = after("integer", alike), after("integer", alike, hold_out(fraction=0.005))
    sized = after("integer", Clip())
    assert floating > 1.3 * integer
    assert clipped > 1.1 * integer
    assert sized < integer
    assert kept < 0.9 * integer


@pytest.mark.parametrize("transform", [Rebalance(neurons=((11, 1229), (2, 90)), power=p) for p in (-2, 2)])
def test_rebalancing_the_super_weights_leaves_logits_bit_equal(lm, transform):
    ids = torch.tensor([IDS])
    with torch.no_grad():
        logits = lm.model(ids).logits
        bench = bench_for(lm, RTN(scheme=Scheme(block=64)), transforms=transform)
        try:
            transform.apply(bench)
            assert torch.equal(lm.model(ids).logits, logits)
        finally:
            bench.restore()
        assert torch.equal(lm.model(ids).logits, logits)

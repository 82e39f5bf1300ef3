"""Exact transforms: the logits stay what they were, to the bit where factors are powers of two."""

from __future__ import annotations

import pytest
import torch

from studfinder.edits import Weights
from studfinder.errors import StudfinderError
from studfinder.quantizers import RTN, Scheme, hold_out, quantized
from studfinder.quantizers.apply import bench_for
from studfinder.quantizers.rotary_pairs import RotaryPairs
from studfinder.quantizers.rotation import Rotate, hadamard
from studfinder.quantizers.transforms import Permute, Rebalance, Split
from tiny import F, L, tiny, token_ids

W4 = RTN(scheme=Scheme(block="channel", zero="integer", scale="float32"))
NEURONS = ((0, 5), (1, 7), (1, 3))


def applied(lm, transform, keep=None):
    """The bench after the transform, before anything is quantised."""
    bench = bench_for(lm, W4, keep=keep, transforms=transform)
    for one in bench.transforms:
        one.apply(bench)
    return bench


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("architecture", "transform"),
    [
        *((a, Rebalance(neurons=NEURONS, power=p)) for a in ("llama", "gemma2", "phi3", "lfm2") for p in (3, -3)),
        *((a, RotaryPairs()) for a in ("llama", "mistral", "qwen2")),
    ],
)
def test_powers_of_two_leave_logits_bit_equal(architecture, transform, dtype):
    lm = tiny(architecture, dtype=dtype)
    with torch.no_grad():  # pairs of unlike size, so that there is something to rescale
        for name, parameter in lm.model.named_parameters():
            if "k_proj.weight" in name:
                parameter[::3] *= 8
    ids = token_ids()
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    logits = lm.model(ids).logits
    bench = applied(lm, transform)
    assert any(not torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    assert torch.equal(lm.model(ids).logits, logits)
    bench.restore()
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())


def test_rebalance_moves_the_factor_where_it_says():
    lm = tiny("llama")
    mlp = lm.model.model.layers[1].mlp
    down, up = mlp.down_proj.weight.detach().clone(), mlp.up_proj.weight.detach().clone()
    applied(lm, Rebalance(neurons=((1, 7),), power=2))
    assert torch.equal(mlp.down_proj.weight[:, 7], 4 * down[:, 7])
    assert torch.equal(mlp.up_proj.weight[7], up[7] / 4)
    assert torch.equal(mlp.down_proj.weight[:, :7], down[:, :7])


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3"])
def test_a_permutation_changes_only_the_order_of_a_sum(architecture):
    lm = tiny(architecture)
    ids = token_ids()
    logits = lm.model(ids).logits
    bench = applied(lm, Permute())
    torch.testing.assert_close(lm.model(ids).logits, logits, rtol=1e-4, atol=1e-5)
    for layer in range(L):
        largest = lm.model.get_parameter(f"model.layers.{layer}.mlp.down_proj.weight").abs().amax(dim=0)
        assert (largest[1:] <= largest[:-1]).all()
    bench.restore()
    assert torch.equal(lm.model(ids).logits, logits)


def test_held_numbers_move_with_a_permutation():
    lm = tiny("llama")
    names = ["model.layers.1.mlp.down_proj.weight", "model.layers.1.mlp.up_proj.weight"]
    entries = [(3, 4), (4, 3)]
    values = [lm.model.get_parameter(name)[entry].item() for name, entry in zip(names, entries, strict=True)]
    keep = hold_out([Weights(parameter=n, entries=(e,)) for n, e in zip(names, entries, strict=True)])
    with quantized(lm, W4, keep=keep, transforms=Permute()) as bench:
        for name, value in zip(names, values, strict=True):
            kept = bench.done[name].kept
            assert kept.value_N.tolist() == pytest.approx([value])


def test_a_split_halves_the_weight_and_keeps_the_output():
    lm = tiny("llama")
    ids = token_ids()
    logits = lm.model(ids).logits
    down = lm.model.get_parameter("model.layers.1.mlp.down_proj.weight").detach().clone()
    bench = applied(lm, Split(neurons=NEURONS, times=4, multiple=16), hold_out(fraction=0.01))
    torch.testing.assert_close(lm.model(ids).logits, logits, rtol=1e-4, atol=1e-5)
    assert lm.model.config.intermediate_size == F + 16
    wide = lm.model.get_parameter("model.layers.1.mlp.down_proj.weight")
    assert torch.equal(wide[:, 7], down[:, 7] / 4)
    assert bench.held["model.layers.1.mlp.down_proj.weight"].shape == wide.shape
    W4.run(bench)
    bench.restore()
    assert lm.model.config.intermediate_size == F
    assert torch.equal(lm.model(ids).logits, logits)


@pytest.mark.parametrize(
    ("architecture", "tied"), [("llama", False), ("llama", True), ("qwen2", False), ("qwen3", False)]
)
def test_a_rotation_keeps_logits_up_to_rounding_and_spreads_a_channel(architecture, tied):
    lm = tiny(architecture)
    if tied:
        lm.model.config.tie_word_embeddings = True
        lm.model.tie_weights()
    with torch.no_grad():
        lm.model.model.embed_tokens.weight[:, 3] *= 20
        lm.model.model.norm.weight.uniform_(0.5, 2)
    ids = token_ids()
    logits = lm.model(ids).logits
    state = {name: value.clone() for name, value in lm.model.state_dict().items()}
    peak = lambda w: (w.abs().max() / w.norm() * w.numel() ** 0.5).item()  # noqa: E731
    before = peak(lm.model.model.embed_tokens.weight)
    bench = applied(lm, Rotate(seed=1))
    torch.testing.assert_close(lm.model(ids).logits, logits, rtol=1e-3, atol=1e-4)
    assert peak(lm.model.model.embed_tokens.weight) < before / 1.5
    bench.restore()
    assert all(torch.equal(value, state[name]) for name, value in lm.model.state_dict().items())
    head, embedding = lm.model.get_output_embeddings().weight, lm.model.get_input_embeddings().weight
    assert (head is embedding) == tied


@pytest.mark.parametrize("size", [32, 576, 640])
def test_hadamard_matrices_are_orthogonal(size):
    matrix = hadamard(size, 0)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-9, rtol=0)
    assert matrix.abs().std() < 1e-9


def test_what_cannot_be_transformed():
    with pytest.raises(StudfinderError, match="no gated feed-forward"):
        applied(tiny("gpt2"), Rebalance(neurons=((0, 1),), power=1))
    with pytest.raises(StudfinderError, match="has no neuron 999"):
        applied(tiny("llama"), Rebalance(neurons=((0, 999),), power=1))
    with pytest.raises(StudfinderError, match="cannot be scaled exactly"):
        applied(tiny("llama", dtype=torch.float16), Rebalance(neurons=((0, 1),), power=-20))
    with pytest.raises(StudfinderError, match="normalises Q and K"):
        applied(tiny("qwen3"), RotaryPairs())
    with pytest.raises(StudfinderError, match="cannot be rotated"):
        applied(tiny("gemma2"), Rotate())
    with pytest.raises(StudfinderError, match="do not survive a rotation"):
        applied(tiny("llama"), Rotate(), hold_out(fraction=0.1))
    with pytest.raises(StudfinderError, match="a power of two"):
        Split(neurons=((0, 1),), times=3)

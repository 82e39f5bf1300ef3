"""GPTQ: what it must equal, what it must beat, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from studfinder.edits import Weights
from studfinder.errors import StudfinderError
from studfinder.quantizers import RTN, Clip, Scheme, calibration_windows, hold_out, quantize_weight, quantized
from studfinder.quantizers.gptq import GPTQ, gptq
from studfinder.quantizers.walk import output_error, second_moments, walk
from tiny import prompts, tiny

W4 = Scheme(element="int4", block=16, zero="integer", scale="float32")
DOWN = "model.layers.1.mlp.down_proj.weight"


def weight(rows: int = 24, cols: int = 48, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def moment(cols: int = 48, tokens: int = 200, seed: int = 1) -> torch.Tensor:
    """Of correlated inputs, some channels much larger than others."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(12, cols, generator=generator) * torch.logspace(-1, 1, cols)
    x_NC = torch.randn(tokens, 12, generator=generator) @ mix + 0.1 * torch.randn(tokens, cols, generator=generator)
    return x_NC.T @ x_NC / tokens


def plainly(weight_RC: torch.Tensor, moment_CC: torch.Tensor, scheme: Scheme, order_C: torch.Tensor) -> torch.Tensor:
    """GPTQ column by column in fp64, with static groups: the paper's algorithm without blocks or recursion."""
    grid = quantize_weight(weight_RC, scheme).grid
    w = weight_RC.double()[:, order_C].clone()
    h = moment_CC.double()[order_C][:, order_C]
    h = h + 0.01 * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    factor = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    step, zero = (x.repeat_interleave(scheme.block, dim=1)[:, order_C].double() for x in (grid.step, grid.zero))
    for c in range(w.shape[1]):
        code = (w[:, c] / step[:, c] + zero[:, c]).round().clamp(*scheme.codes)
        q = (code - zero[:, c]) * step[:, c]
        w[:, c + 1 :] -= ((w[:, c] - q) / factor[c, c])[:, None] * factor[c, c + 1 :]
        w[:, c] = q
    return w[:, order_C.argsort()].float()


@pytest.mark.parametrize("order", ["activation", "stored"])
def test_it_is_the_papers_algorithm(order):
    w, h = weight(), moment()
    columns = h.diagonal().argsort(descending=True, stable=True) if order == "activation" else torch.arange(48)
    (found,), damping = gptq([w], h, GPTQ(scheme=W4, order=order))
    same = (found.dequantized() - plainly(w, h, W4, columns)).abs() < 1e-5
    assert same.float().mean() > 0.999  # a tie may fall to either side
    assert damping == 0.01


@pytest.mark.parametrize(
    "scheme",
    [
        W4,
        Scheme(element="int3", block="channel", zero="float"),
        Scheme(element="int4", block="tensor"),
        Scheme(element="int4", block=(8, 16), narrow=True),
        Scheme(element="int4", block=(10, 20), remainder="block"),
        Scheme(element="int2", block=20, zero="integer", remainder="block"),
        Scheme(element="fp8", block="channel"),
        Scheme(element="fp4", block=16, scale="e8m0"),
        Scheme(element="fp4", block=16, scale="e4m3"),
    ],
    ids=str,
)
def test_without_correlation_it_is_round_to_nearest_and_with_it_the_error_is_smaller(scheme):
    w, h = weight(), moment()
    nearest = quantize_weight(w, scheme)
    for groups in ("static", "dynamic"):
        for order in ("activation", "stored"):
            if groups == "dynamic" and (
                scheme.scale == "e4m3" or (isinstance(scheme.block, tuple) and order == "activation")
            ):
                continue  # refused, see below
            config = GPTQ(scheme=scheme, order=order, groups=groups)
            (alone,), _ = gptq([w], torch.eye(48), config)
            assert torch.equal(alone.codes_RC.float(), nearest.codes_RC.float())
            (found,), _ = gptq([w], h, config)
            assert output_error(found.dequantized() - w, h) < 0.9 * output_error(nearest.dequantized() - w, h)
            assert found.bits >= nearest.bits


def test_matrices_side_by_side_are_as_alone():
    h, parts = moment(), [weight(24, seed=3), weight(9, seed=4), weight(1, seed=5)]
    held = [None, parts[1] > 1.5, None]
    for groups in ("static", "dynamic"):
        config = GPTQ(scheme=W4, groups=groups, clip=Clip(steps=3))
        together, _ = gptq(parts, h, config, held)
        for one, w, mask in zip(together, parts, held, strict=True):
            (alone,), _ = gptq([w], h, config, [mask])
            assert torch.equal(one.codes_RC, alone.codes_RC)
            torch.testing.assert_close(one.dequantized(), alone.dequantized(), rtol=1e-5, atol=1e-6)


def test_dynamic_groups_are_fitted_to_what_their_columns_have_become():
    w, h = weight(), moment()
    (stored,), _ = gptq([w], h, GPTQ(scheme=W4, groups="dynamic", order="stored"))
    (static,), _ = gptq([w], h, GPTQ(scheme=W4, groups="static", order="stored"))
    assert stored.group_C is None
    assert torch.equal(stored.grid.step[:, 0], static.grid.step[:, 0])  # nothing has happened to the first group yet
    assert not torch.equal(stored.grid.step[:, 1], static.grid.step[:, 1])
    (ordered,), _ = gptq([w], h, GPTQ(scheme=W4, groups="dynamic"))
    order_C = h.diagonal().argsort(descending=True, stable=True)
    assert ordered.group_C.tolist() == (torch.arange(48) // 16)[order_C.argsort()].tolist()
    assert ordered.bits > stored.bits  # the table of groups is counted


def test_dead_columns_are_rounded_to_nearest_and_disturb_nothing():
    w, h = weight(), moment()
    dead = [3, 17, 40]
    h[dead] = 0
    h[:, dead] = 0
    (found,), _ = gptq([w], h, GPTQ(scheme=W4))
    nearest = quantize_weight(w, W4)
    assert torch.equal(found.codes_RC[:, dead], nearest.codes_RC[:, dead])
    living = [c for c in range(48) if c not in dead]
    other = w.clone()
    other[:, dead] = w[:, dead] * 0.5  # inside the range, so that the grids stay
    rows = (quantize_weight(other, W4).grid.step == nearest.grid.step).all(dim=1)  # whose grids stay
    assert rows.any()
    (again,), _ = gptq([other], h, GPTQ(scheme=W4))
    assert torch.equal(again.codes_RC[rows][:, living], found.codes_RC[rows][:, living])


def test_a_singular_hessian_is_damped_more_and_it_is_said():
    w = weight()
    h = torch.full((48, 48), 4.0)
    h[0, 1] = h[1, 0] = 7.0  # indefinite: no sum of squares looks like this
    (found,), damping = gptq([w], h, GPTQ(scheme=W4))
    assert damping > 0.01
    assert torch.isfinite(found.dequantized()).all()
    h[0, 1] = h[1, 0] = 900.0
    with pytest.raises(StudfinderError, match="no inverse"):
        gptq([w], h, GPTQ(scheme=W4))


def test_held_entries_keep_their_value_and_the_others_make_up_for_it():
    w, h = weight(), moment()
    w[5, 7] = 40.0
    mask = w == 40.0
    (found,), _ = gptq([w], h, GPTQ(scheme=W4), [mask])
    assert found.dequantized()[5, 7] == 40.0
    nearest = quantize_weight(w, W4, held_RC=mask)
    assert torch.equal(found.grid.step, nearest.grid.step)
    assert output_error(found.dequantized() - w, h) < 0.9 * output_error(nearest.dequantized() - w, h)


def test_a_model_block_by_block():
    lm, windows = tiny("llama"), prompts((40, 40, 30))
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    keep = hold_out(Weights(parameter=DOWN, entries=((3, 4),)))
    errors = {}
    for method in (RTN(scheme=W4), GPTQ(scheme=W4), GPTQ(scheme=W4, sequential=True)):
        with quantized(lm, method, keep=keep, windows=windows) as bench:
            assert len(bench.done) == 21
            assert bench.done[DOWN].dequantized()[3, 4] == before[DOWN][3, 4]
            errors[method] = {name: one.dequantized() for name, one in bench.done.items()}
        assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    rtn, plain, sequential = errors.values()
    from studfinder.quantizers.apply import bench_for

    block = next(walk(bench_for(lm, GPTQ(scheme=W4), windows=windows)))
    for name, h in second_moments(block).items():
        w = before[name]
        assert output_error(plain[name] - w, h) < output_error(rtn[name] - w, h)
    q, o = (f"model.layers.0.self_attn.{part}_proj.weight" for part in "qo")
    assert torch.equal(plain[q], sequential[q])
    assert not torch.equal(plain[o], sequential[o])


def test_conv1d_and_experts_of_their_own():
    lm = tiny("gpt2")
    with quantized(lm, GPTQ(scheme=W4), windows=prompts()) as bench:
        assert len(bench.done) == 12


def test_bad_input_is_named():
    lm = tiny("llama")
    with pytest.raises(StudfinderError, match="GPTQ needs calibration text"):
        quantized(lm, GPTQ(scheme=W4))
    with torch.no_grad():
        lm.model.get_parameter(DOWN)[0, 0] = float("nan")
    with pytest.raises(StudfinderError, match=r"layers\.1\.mlp\.down_proj\.weight: a weight is NaN"):
        with quantized(lm, GPTQ(scheme=W4), windows=prompts()):
            pass
    lm = tiny("llama")
    with torch.no_grad():
        lm.model.get_parameter("model.layers.1.input_layernorm.weight")[0] = float("inf")
    with pytest.raises(StudfinderError, match=r"what enters model\.layers\.1\.self_attn\.q_proj\.weight"):
        with quantized(lm, GPTQ(scheme=W4), windows=prompts()):
            pass
    for settings in ({"order": "random"}, {"groups": "none"}, {"damping": 0.0}):
        with pytest.raises(StudfinderError):
            GPTQ(**settings)
    with pytest.raises(StudfinderError, match="static groups"):
        GPTQ(scheme=Scheme(element="fp4", block=16, scale="e4m3"), groups="dynamic")
    with pytest.raises(StudfinderError, match="static groups"):
        GPTQ(scheme=Scheme(block=(8, 16)), groups="dynamic")


def test_too_little_text_is_refused(tmp_path):
    from studfinder.models import load
    from tiny import tokenizer

    lm = tiny("llama")
    lm = load(lm.model, tokenizer=tokenizer())
    text = tmp_path / "short.txt"
    text.write_text("w3 w4 w5 w6")
    with pytest.raises(StudfinderError, match="too few for 2 calibration windows"):
        calibration_windows(lm, text, count=2, length=8)


@pytest.mark.parametrize("method", ["gptq", "awq", "smoothquant"])
def test_exported_it_is_the_model_in_memory(tmp_path, method):
    from transformers import AutoModelForCausalLM

    from checkpoints import checkpoint
    from studfinder.models import load
    from studfinder.quantizers import method_class
    from studfinder.verbs.quantize import quantize
    from tiny import token_ids

    source = checkpoint(tmp_path / "source", dtype=torch.bfloat16)
    text = tmp_path / "text.txt"
    words = torch.randint(3, 90, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    text.write_text(" ".join(f"w{word}" for word in words))
    settings = {"activations": None} if method == "smoothquant" else {}
    scheme = Scheme(element="int8" if method == "smoothquant" else "int4", block=16, zero="integer")
    chosen = method_class(method)(scheme=scheme, **settings)
    done = quantize(source, chosen, out=tmp_path / "out", calibration=text, samples=3, length=30)
    assert done.calibration is not None
    lm = load(source)
    windows = calibration_windows(lm, text, count=3, length=30)[1]
    with quantized(lm, chosen, windows=windows), torch.no_grad():
        wanted = lm.model(token_ids()).logits
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.equal(model(token_ids()).logits, wanted)

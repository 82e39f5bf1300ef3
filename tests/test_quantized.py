"""A quantised model in memory: what changes, what is kept, and that nothing is left afterwards."""

from __future__ import annotations

import os
import signal
from functools import partial

import pytest
import torch

from architected import built
from studfinder.edits import Weights
from studfinder.errors import StudfinderError
from studfinder.models import load
from studfinder.quantizers import RTN, Clip, Scheme, calibration_windows, hold_out, quantized, skip, targets
from studfinder.quantizers.apply import bench_for
from studfinder.quantizers.walk import second_moments, walk
from studfinder.sites import Journal
from tiny import ARCHITECTURES, C, F, prompts, tiny, token_ids, tokenizer

W4 = RTN(scheme=Scheme(block="channel", zero="integer", scale="float32"))
FUSED_EXPERTS = {"mixtral", "qwen2_moe", "qwen3_moe", "qwen3_next"}


def state(lm):
    return {name: value.clone() for name, value in lm.model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_matrix_of_a_block_is_quantised_and_put_back(architecture):
    lm = tiny(architecture)
    ids = token_ids()
    before, logits = state(lm), lm.model(ids).logits
    with quantized(lm, W4) as bench:
        now = state(lm)
        changed = {name for name in before if not torch.equal(before[name], now[name])}
        assert changed == {target.ref.parameter for target in targets(lm)}
        assert {target.name for target in targets(lm)} == set(bench.done)
        assert {name for name in changed if before[name].dim() > 2} == {
            target.ref.parameter for target in bench.targets if target.part is not None
        }
        assert any(target.part is not None for target in bench.targets) == (architecture in FUSED_EXPERTS)
        # Conv1D keeps its matrices transposed: what shares a scale is an output channel in any case.
        for target in bench.targets:
            assert max(len(row.unique()) for row in target.weight(lm)) <= 16
        assert not torch.equal(lm.model(ids).logits, logits)
    assert same(state(lm), before)
    assert torch.equal(lm.model(ids).logits, logits)


def test_what_is_fused_when_served_shares_a_name():
    groups = {}
    for target in targets(tiny("llama")):
        groups.setdefault(target.fused, []).append(target.name.split(".")[-2])
    first = [names for fused, names in groups.items() if ".0." in fused]
    assert first == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]


def test_nothing_is_left_after_an_error_inside():
    lm = tiny("llama")
    before = state(lm)
    with pytest.raises(ZeroDivisionError), quantized(lm, W4):
        raise ZeroDivisionError
    assert same(state(lm), before)


def test_nothing_is_left_when_the_method_fails_half_way():
    lm = tiny("llama")
    with torch.no_grad():
        lm.model.model.layers[2].mlp.down_proj.weight[3, 3] = float("nan")
    before = {name: value for name, value in state(lm).items() if "layers.2.mlp.down_proj" not in name}
    with pytest.raises(StudfinderError, match=r"NaN"), quantized(lm, W4):
        pass
    assert same({name: value for name, value in state(lm).items() if name in before}, before)


@pytest.mark.parametrize("at", [0, 3, 20])
def test_nothing_is_left_after_ctrl_c(at, request):
    lm = tiny("llama")
    before = state(lm)

    def interrupt(_what, done, _total):
        if done == at:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.default_int_handler  # a shell's background jobs start with Ctrl-C ignored
    started = signal.signal(signal.SIGINT, handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, started))
    with pytest.raises(KeyboardInterrupt):
        with quantized(lm, W4, progress=interrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert same(state(lm), before)
    assert signal.getsignal(signal.SIGINT) is handler


def test_contexts_nest():
    lm = tiny("llama")
    before = state(lm)
    with quantized(lm, RTN(scheme=Scheme(element="int8", block="channel"))):
        eight = state(lm)
        with quantized(lm, W4):
            assert not same(state(lm), eight)
        assert same(state(lm), eight)
    assert same(state(lm), before)


def test_held_out_entries_survive_in_every_layout():
    for architecture in ("llama", "gpt2"):
        lm = tiny(architecture)
        target = targets(lm)[-1]
        parameter = lm.model.get_parameter(target.name)
        place = (1, 2)
        with torch.no_grad():
            parameter[place] = 7.0
        keep = hold_out(Weights(parameter=target.name, entries=(place,)))
        with quantized(lm, W4, keep=keep) as bench:
            assert parameter[place] == 7.0
            assert bench.done[target.name].kept.index_N.numel() == 1
            with_keep = target.weight(lm).clone()
        with quantized(lm, W4):
            row = place[::-1][0] if target.ref.transposed else place[0]
            without = target.weight(lm)[row]
            original = [p for p in range(without.numel()) if abs(with_keep[row, p]) != 7.0]
            assert (without[original]).unique().numel() < with_keep[row, original].unique().numel()


def test_a_fraction_is_held_out_of_every_matrix():
    lm = tiny("llama")
    with quantized(lm, W4, keep=hold_out(fraction=0.01)) as bench:
        for name, done in bench.done.items():
            assert done.kept.index_N.numel() == int(0.01 * lm.model.get_parameter(name).numel())
        assert bench.bits == pytest.approx(
            sum(q.bits * q.codes_RC.numel() for q in bench.done.values())
            / sum(q.codes_RC.numel() for q in bench.done.values())
        )


def test_a_skip_takes_along_what_is_fused():
    lm = tiny("llama")
    before = state(lm)
    with quantized(lm, W4, keep=skip("model.layers.1.self_attn.k_proj")) as bench:
        assert bench.skipped == ("model.layers.1.self_attn.q_proj+k_proj+v_proj",)
        for leaf in ("q_proj", "k_proj", "v_proj"):
            name = f"model.layers.1.self_attn.{leaf}.weight"
            assert torch.equal(lm.model.get_parameter(name), before[name])
        all_bits = bench.bits
    with quantized(lm, W4) as bench:
        assert bench.bits < all_bits


def test_what_cannot_be_kept():
    lm = tiny("llama")
    with pytest.raises(StudfinderError, match="no matrix is called"):
        quantized(lm, W4, keep=skip("layers.99"))
    with pytest.raises(StudfinderError, match="is not quantised"):
        quantized(lm, W4, keep=hold_out(Weights(parameter="lm_head.weight", entries=((0, 0),))))
    name = targets(lm)[0].name
    with pytest.raises(StudfinderError, match="is not an index"):
        quantized(lm, W4, keep=hold_out(Weights(parameter=name, entries=((0, 10_000),))))
    with pytest.raises(StudfinderError, match="nothing to hold out"):
        hold_out()
    with pytest.raises(StudfinderError, match="everything is skipped"):
        quantized(lm, W4, keep=skip("*"))
    with pytest.raises(StudfinderError, match="cannot keep"):
        quantized(lm, W4, keep=3)
    with pytest.raises(StudfinderError, match="no findings"):
        quantized(lm, W4, keep="findings.json")


def test_a_group_that_does_not_fit_names_the_matrix_before_anything_changes():
    lm = tiny("llama")
    before = state(lm)
    with pytest.raises(StudfinderError, match=r"layers\.0\.self_attn\.q_proj\.weight: blocks of 1 x 128"):
        quantized(lm, RTN())
    assert same(state(lm), before)


def test_the_walk_sees_what_the_quantised_model_would():
    """Inputs of each matrix, with everything before it quantised, equal those of a full pass of the final model."""
    lm = tiny("gemma3_text")  # layers with masks of two kinds
    windows = prompts((9, 14, 6))
    bench = bench_for(lm, W4, windows=windows)
    seen: dict[str, list] = {}
    for block in walk(bench, batch_size=2):
        block.run({t.name: seen.setdefault(t.name, []).append for t in block.targets})
        for target in block.targets:
            from studfinder.quantizers.rtn import round_to_nearest

            bench.put(target, round_to_nearest(target.weight(lm), W4))
    whole: dict[str, list] = {}
    handles = []
    for target in bench.targets:

        def hook(_m, args, name=target.name):
            whole.setdefault(name, []).append(args[0].reshape(-1, args[0].shape[-1]))

        handles.append(lm.model.get_submodule(target.ref.module).register_forward_pre_hook(hook))
    for ids in windows:
        lm.model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    for name, target in {t.name: t for t in bench.targets}.items():
        got = torch.cat(seen[name])
        if "q_proj" in name:  # the first matrix of a block: nothing of its own block is quantised before it
            torch.testing.assert_close(got, torch.cat(whole[name]), rtol=1e-4, atol=1e-5)
        assert got.shape == (sum(map(len, windows)), target.weight(lm).shape[1])
    bench.restore()


@pytest.mark.parametrize("kind", ["llama", "gemma3n_text", "glm_moe_dsa", "hrm_text", "openai-gpt"])
def test_what_enters_on_the_walk_is_bit_for_bit_what_enters_in_a_forward_pass(kind):
    """Also where blocks are given more than the stream, or run several times over: then when they first run."""
    lm = load(built(kind), None)
    ids = list(range(3, 15))
    chosen = [target for target in bench_for(lm, W4, windows=[ids]).targets if target.part is None]
    whole: dict[str, torch.Tensor] = {}
    with Journal(lm.model) as journal:
        for target in chosen:

            def hook(_module, args, name=target.name):
                whole.setdefault(name, args[0].reshape(-1, args[0].shape[-1]))

            journal.hook(lm.model.get_submodule(target.ref.module), hook, before=True)
        with torch.no_grad():
            lm.model(input_ids=torch.tensor([ids]), use_cache=False)
    seen: dict[str, torch.Tensor] = {}
    for block in walk(bench_for(lm, W4, windows=[ids])):
        block.run({t.name: partial(seen.setdefault, t.name) for t in block.targets if t.part is None})
    assert len(whole) == len(chosen)
    assert all(torch.equal(seen[name], x_NC) for name, x_NC in whole.items())


def test_second_moments_are_those_of_the_inputs():
    lm = tiny("llama")
    windows = prompts((9, 14))
    bench = bench_for(lm, W4, windows=windows)
    inputs = []
    handle = lm.model.model.layers[0].mlp.down_proj.register_forward_pre_hook(
        lambda _m, args: inputs.append(args[0][0])
    )
    for ids in windows:
        lm.model(torch.tensor([ids]))
    handle.remove()
    x = torch.cat(inputs)
    block = next(walk(bench, batch_size=2))
    found = second_moments(block)
    torch.testing.assert_close(found["model.layers.0.mlp.down_proj.weight"], x.T @ x / len(x), rtol=1e-4, atol=1e-6)
    q, k = (found[f"model.layers.0.self_attn.{leaf}.weight"] for leaf in ("q_proj", "k_proj"))
    assert q is k
    assert found["model.layers.0.mlp.down_proj.weight"].shape == (F, F)
    assert q.shape == (C, C)


def test_calibration_windows_follow_each_other_and_begin_as_the_tokenizer_begins(tmp_path):
    lm = load(tiny("llama").model, tokenizer())
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{i % 90 + 3}" for i in range(100)))
    name, windows = calibration_windows(lm, text, count=4, length=21)
    assert name == "text.txt"
    assert [w[0] for w in windows] == [1] * 4
    assert [i for w in windows for i in w[1:]] == [i % 90 + 3 for i in range(80)]
    with pytest.raises(StudfinderError, match=r"100 tokens, too few for 6 calibration windows"):
        calibration_windows(lm, text, count=6, length=21)
    with pytest.raises(StudfinderError, match="test text"):
        calibration_windows(lm, "wikitext2")


def test_clip_search_is_part_of_the_method():
    lm = tiny("llama")
    with quantized(lm, W4) as bench:
        plain = {name: done.grid.scale for name, done in bench.done.items()}
    with quantized(lm, RTN(scheme=W4.scheme, clip=Clip(norm=2.0))) as bench:
        assert all((bench.done[name].grid.scale <= plain[name]).all() for name in plain)
        assert any((bench.done[name].grid.scale < plain[name]).any() for name in plain)

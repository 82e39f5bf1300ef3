"""The massive-activations paper's experiments, from end to end, on a tiny model in which they were planted."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from experimented import run

from builtins_here import REAL_DTYPE
from proving import LAYER, provable
from studfinder.errors import StudfinderError
from studfinder.experiments import plan_experiment, run_experiment
from studfinder.experiments.massive_onset import onset_of, set_massive, stand_ins
from studfinder.experiments.massive_where_claims import share_of
from studfinder.models import load
from studfinder.sites import capture
from studfinder.texts import default_prompts, encode
from tasked import choices, words, write

DIM = 9


def massive(*dims: int):
    """A model whose block LAYER adds a large constant to some dims at first tokens: their embedding has a mark that no
    other token has, which one neuron reads."""
    lm = provable("llama", planted=False)[0]
    lm.model.config.max_position_embeddings = 1024
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.eos_token = "?"
    block = lm.model.get_submodule(lm.anatomy.layers[LAYER].block)
    mark = lm.anatomy.hidden - 1
    with torch.no_grad():
        embedding = lm.model.get_input_embeddings().weight
        embedding[:, mark] = 0.0
        for first in {ids[0] for ids in encode(load(lm.model, tokenizer), default_prompts())[0]}:
            embedding[first, mark] = 3.0
        block.mlp.gate_proj.weight[0] = 0.0
        block.mlp.up_proj.weight[0] = 0.0
        block.mlp.gate_proj.weight[0, mark] = block.mlp.up_proj.weight[0, mark] = 5.0
        for dim in dims or (DIM,):
            block.mlp.down_proj.weight[dim, 0] = 100.0
    return load(lm.model, tokenizer)


@pytest.fixture(scope="module")
def lm():
    return massive()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiments")
    random = np.random.default_rng(0)
    write(folder / "data", "choice/piqa.jsonl", choices(12, 2))
    (folder / "text.txt").write_text("\n".join(words(random, 30) for _ in range(12)), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("STUDFINDER_DATA", str(folder / "data"))
        patch.setenv("STUDFINDER_CACHE", str(folder / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield folder


def claims(result):
    return {one.claim.key.split("/")[1]: one.verdict for one in result.claims}


def test_onset(lm):
    onset = onset_of(lm, bos=False)
    assert (onset.layer, onset.dims) == (LAYER, (DIM,))
    ids = encode(lm, default_prompts()[:1])[0][0]
    hidden = capture(lm, torch.tensor([ids]), [f"residual[{LAYER}]"])[f"residual[{LAYER}]"]
    assert onset.tokens(LAYER, hidden[0])[0]
    assert not onset.tokens(LAYER, hidden[0]).all()
    assert onset.means[DIM, LAYER][0] == pytest.approx(float(hidden[0, 0, DIM]), rel=0.5)
    for kind in ("random", "like", "median"):
        for layer, dims in stand_ins(onset, [DIM], kind).items():
            assert layer in onset.layers[DIM]
            assert set(dims) == {DIM}
            assert dims[DIM] != DIM


def test_the_stand_ins_of_several_dims(lm):
    """As many, all of them others, random ones the same in every layer and another draw another."""
    onset = onset_of(massive(DIM, 4), bos=False)
    assert set(onset.dims) == {DIM, 4}
    drawn = stand_ins(onset, onset.dims, "random", 1)
    assert len({tuple(sorted(dims.items())) for dims in drawn.values()}) == 1
    (dims, *_) = drawn.values()
    assert len({*dims.values(), DIM, 4}) == 4
    assert any(stand_ins(onset, onset.dims, "random", seed) != drawn for seed in range(2, 6))


@pytest.mark.parametrize("layers", [(), (LAYER,)])
def test_what_is_replaced(lm, layers):
    """The massive entry alone, after each of its layers or one; its stand-in where there is one."""
    onset = onset_of(lm, bos=False)
    ids = torch.tensor([encode(lm, default_prompts()[:1])[0][0][:60]])
    site = f"residual[{LAYER}]"
    before = capture(lm, ids, [site])[site]
    for how, dim, value in (
        ({}, DIM, (0.0, 0.0)),
        ({"to_mean": True}, DIM, onset.means[DIM, LAYER]),
        ({"instead": {layer: {DIM: 2} for layer in onset.layers[DIM]}}, 2, (0.0, 0.0)),
    ):
        with set_massive(lm, onset, [DIM], layers=layers, **how):
            after = capture(lm, ids, [site])[site]
        expected = before.clone()
        expected[0, onset.tokens(LAYER, before[0]), dim] = value[1]
        expected[0, 0, dim] = value[0]
        assert torch.allclose(after, expected)


def test_an_edit_that_changes_nothing_is_refused(lm):
    onset = onset_of(lm, bos=False)
    least = dict.fromkeys(onset.least, 1e9)
    ids = torch.tensor([[3, 4]])
    with pytest.raises(StudfinderError, match="was massive"), set_massive(lm, replace(onset, least=least), [DIM]):
        lm.model(input_ids=ids)


def test_where(lm, folder):
    text = str(folder / "text.txt")
    result = run("massive-activations/where", lm, folder, limit=4, window=64, shuffled=3, text=text)
    _, kinds, dims, by_layer = result.tables
    assert {row[1] for row in dims.rows} == {DIM}
    assert dims.rows[0][3] == LAYER
    first = next(row for row in kinds.rows if row[1:3] == ("any", "first"))
    assert first[4] >= 12  # of the twelve prompts each first token, and perhaps those of the text
    assert by_layer.rows[LAYER][-1] == 0  # the row of the layer before: the embedding comes first
    assert by_layer.rows[LAYER + 1][-1] > 0.7
    assert claims(result)["first-token"] == "held"
    assert claims(result)["exist"] != "did not hold"


@pytest.mark.parametrize(("held", "low", "high"), [(0, 0, 0.037), (50, 0.4, 0.6), (100, 0.963, 1)])
def test_a_share_has_an_interval_also_at_its_ends(held, low, high):
    found = share_of(np.array([held / 2, held / 2]), np.array([50.0, 50.0]))
    assert found.value == held / 100
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-2), pytest.approx(high, abs=1e-2))
    assert share_of(np.zeros(2), np.zeros(2)) is None


def test_a_dim_that_is_massive_at_most_tokens_is_no_spike():
    from studfinder.experiments.massive_where_claims import spike_dims, where_claims

    kinds = ["first", *["delimiter", "other", "low-semantic"] * 4]
    spike, sink = [[1, 7, 0, 500.0], [1, 7, 1, 500.0]], [[1, 3, place, 300.0] for place in range(1, 13)]
    windows = [{"massive": [*spike, *sink], "kinds": kinds, "tokens": ["a"] * 13} for _ in range(30)]
    assert spike_dims(windows) == [7]
    found = where_claims({"without BOS": windows}, {"having": 0, "windows": 16}, hidden=64)
    verdicts = {one.claim.key.split("/")[1]: one.verdict for one in found}
    assert verdicts == {
        "exist": "held",
        "fixed-dims": "held",
        "few-tokens": "did not hold",
        "first-token": "held",
        "delimiters": "held",
    }
    alone = [{**window, "massive": spike[:1]} for window in windows]
    found = where_claims({"without BOS": alone}, {"having": 16, "windows": 16}, hidden=64)
    verdicts = {one.claim.key.split("/")[1]: one.verdict for one in found}
    assert verdicts["exist"] == "did not hold", "the shuffled model has them, too"
    assert (verdicts["first-token"], verdicts["delimiters"]) == ("held", "did not hold")
    nothing = [{**window, "massive": []} for window in windows]
    found = where_claims({"without BOS": nothing}, {"having": 0, "windows": 16}, hidden=64)
    assert [one.verdict for one in found] == ["did not hold", *["not decided"] * 4]
    assert all(one.why for one in found)


def test_shuffled_weights_leave_no_trace(lm):
    from studfinder.experiments.massive_activations_where import _shuffled

    ids = encode(lm, default_prompts()[:2])[0]
    before = {name: value.clone() for name, value in lm.model.named_parameters()}
    assert _shuffled(lm, ids, 0)["windows"] == 2
    assert all(torch.equal(value, before[name]) for name, value in lm.model.named_parameters())


def test_zero_or_mean(lm, folder):
    (folder / "short.txt").write_text("ab", encoding="utf-8")
    result = run(
        "massive-activations/zero-or-mean",
        lm,
        folder,
        limit=6,
        windows=3,
        window=64,
        draws=2,
        texts=f"{folder}/text.txt,{folder}/short.txt",
        tasks="piqa,hellaswag",
    )
    _, change, tasks = result.tables
    moved = {row[0]: abs(np.log(row[1].interval.value)) for row in change.rows}
    assert moved["all to zero"] > 3 * moved["all to their mean"]
    assert moved["all to zero"] > 3 * moved["control of all: median-like"]
    assert moved["all to zero"] > 3 * moved["control of all: random 2"]
    assert moved["to zero once, after the first layer (the paper's way)"] > 3 * moved["all to their mean"]
    assert len(tasks.rows) == 3
    assert any("not measured: hellaswag" in note for note in result.notes)
    rows = {row[0]: row[1].interval.value for row in change.rows}
    random = np.sqrt(rows["control of all: random 1"] * rows["control of all: random 2"])
    matters, like, destroys, mean = result.claims
    assert like.number.value == pytest.approx(rows["all to zero"] / rows["control of all: the next largest"])
    assert matters.number.value == pytest.approx(rows["all to zero"] / random)
    assert destroys.number == matters.number
    assert mean.number.value == pytest.approx(rows["all to their mean"])


def test_no_op_heads(lm, folder):
    result = run("massive-activations/no-op-heads", lm, folder, limit=6, draws=3)
    phases, by_layer = result.tables
    assert len(by_layer.rows) == lm.anatomy.heads - 1
    mass = [row[1].value for row in by_layer.rows]
    assert all(0 <= value <= 1 for value in mass)
    assert {row[0].split(":")[0] for row in phases.rows} == {"before", "after"}
    assert set(claims(result)) == {
        "attended",
        "draw-attention",
        "bias-over-queries",
        "bias-beyond-attention",
        "bias-over-texts",
    }
    attend = result.claims[0]
    assert attend.number.value == pytest.approx(attend.effect.value - attend.control.value)


def test_heads(lm, folder):
    result = run("massive-activations/heads", lm, folder, limit=4, window=64, sequences=3, length=8)
    kinds, *maps = result.tables
    assert {row[0] for row in kinds.rows} == {"induction", "previous token", "no-op (massive tokens)"}
    heads = lm.anatomy.heads
    for table in maps:
        assert [row[0] for row in table.rows] == list(range(len(lm.anatomy.layers)))
        for _, scores, controls in table.rows:
            assert len(scores.split()) == len(controls.split()) == heads
            assert all(0 <= float(score.strip("*")) <= 1 for score in scores.split())


@pytest.mark.parametrize(("steps", "kind"), [(1, "previous"), (2, "")])
def test_a_planted_previous_token_head_is_called_one(steps, kind):
    """Attention that is all on the token `steps` before."""
    from studfinder.experiments.massive_activations_heads import _called

    back = np.zeros((6, 2, 3))
    back[:, steps - 1, 1] = 0.9 + np.random.default_rng(0).normal(0, 0.01, 6)
    assert set(_called({4: back})) == ({(4, 1)} if kind else set())


def test_tokens_beside():
    from studfinder.experiments.massive_attention import _nearest

    assert _nearest(torch.tensor([0]), torch.tensor([1, 2, 3])).tolist() == [1]
    assert _nearest(torch.tensor([0, 2, 5]), torch.tensor([1, 3, 4, 6, 7])).tolist() == [1, 3, 6]


def test_attention_to_massive_tokens_is_read_as_they_enter_a_layer(lm):
    from studfinder.experiments.massive_attention import attention_to_massive, mass_at_zero

    onset = onset_of(lm, bos=False)
    ids = encode(lm, default_prompts()[:1])[0][0][:60]
    seen = list(attention_to_massive(lm, onset, ids))
    assert [one.layer for one in seen] == list(range(len(lm.anatomy.layers)))
    zeroed = mass_at_zero(lm, onset, ids, seen)
    for one in seen:
        assert one.held[0] == 0
        assert len(one.beside) == len(one.held)
        assert not set(one.beside.tolist()) & set(one.held.tolist())
        assert torch.equal(zeroed[one.layer], one.mass_H) == (one.layer <= onset.layer)


def test_prefix_matching_finds_the_token_after_the_first_occurrence():
    """Attention is as it is made: one head looks there, one at the token before."""
    from types import SimpleNamespace

    from studfinder.measures.induction import prefix_matching

    size, tokens = 4, 9
    key = torch.eye(tokens)[None, None]
    query = torch.zeros(1, 2, tokens, tokens)
    for place in range(tokens):
        query[0, 0, place, max(0, place - size + 1)] = query[0, 1, place, max(0, place - 1)] = 100.0
    nothing = dict.fromkeys(("mask", "window", "sinks", "softcap"))
    event = SimpleNamespace(query_BHTD=query, key_BGSD=key, scaling=1.0, **nothing)
    assert prefix_matching(event, size).tolist() == pytest.approx([1.0, 0.0], abs=1e-4)


def test_what_is_added_is_the_head_output_of_those_tokens(lm):
    """The massive tokens and all the others together make up the whole attention output."""
    from studfinder.detectors.attention_sinks import attention_weights
    from studfinder.sites import AttentionCall, tapped

    ids = torch.tensor([encode(lm, default_prompts()[:1])[0][0][:20]])
    seen, outputs = [], []
    hook = lm.model.model.layers[LAYER].self_attn.o_proj.register_forward_pre_hook(
        lambda _module, args: outputs.append(args[0])
    )
    with torch.no_grad(), tapped(lm, read={AttentionCall: [seen.append]}):
        lm.model(input_ids=ids, use_cache=False)
    hook.remove()
    event = next(event for event in seen if event.layer == LAYER)
    p_HTS = attention_weights(event, 0, 20, 20)[0]
    assert torch.allclose(p_HTS.sum(dim=-1), torch.ones(p_HTS.shape[:2]), atol=1e-5)
    value_HSD = event.value_BGSD[0].repeat_interleave(2, dim=0)
    whole_THD = (p_HTS @ value_HSD).transpose(0, 1)
    assert torch.allclose(whole_THD.reshape(20, -1), outputs[0][0], atol=1e-5)


def test_a_model_without_any_is_refused(folder):
    plain = provable("llama", planted=False)[0]
    plan = plan_experiment("massive-activations/no-op-heads", ["tiny"])
    with pytest.raises(StudfinderError, match="no massive activation"):
        run_experiment(plan, out=folder / "none", loader=lambda _: plain)


@pytest.mark.deep
@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_next", "lfm2", "gpt2", "gpt_oss", "falcon"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [("where", {"limit": 2, "shuffled": 1}), ("heads", {"limit": 2, "sequences": 2, "length": 6}), ("no-op-heads", {})],
)
def test_other_types_are_measured_or_refused_by_name(architecture, name, settings, folder):
    own = provable(architecture, planted=False)[0]
    text = {"text": str(folder / "text.txt")} if name == "where" else {}
    plan = plan_experiment(f"massive-activations/{name}", ["tiny"], settings={"window": 32, **text, **settings})
    out = folder / f"{architecture} {name}"
    if name == "no-op-heads" or (architecture, name) == ("falcon", "heads"):
        missing = "no massive activation" if name == "no-op-heads" else "attention that can be read"
        with pytest.raises(StudfinderError, match=missing):
            run_experiment(plan, out=out, loader=lambda _: own)
        return
    result, _ = run_experiment(plan, out=out, loader=lambda _: own)
    assert result.tables[0].rows
    assert [one.verdict for one in result.claims] in ([], ["did not hold", *["not decided"] * 4])


@pytest.mark.real
def test_onset_of_the_built_in_model():
    lm = load("smollm2", dtype=REAL_DTYPE)
    onset = onset_of(lm, bos=False)
    assert (onset.layer, onset.dims[0]) == (11, 507)
    assert all(first == other for first, other in onset.means.values()), "at first tokens alone"

"""The massive-activations paper's experiments, from end to end, on a tiny model in which they were planted."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from experimented import run

from builtins_here import REAL_DTYPE
from proving import LAYER, provable
from studfinder.errors import StudfinderError
from studfinder.experiments import plan_experiment, run_experiment
from studfinder.experiments.massive_onset import control_dims, onset_of
from studfinder.models import load
from studfinder.sites import capture
from studfinder.texts import default_prompts, encode
from tasked import choices, words, write

DIM = 9


def massive(dim: int = DIM):
    """A model whose block LAYER adds a large constant to one dim at first tokens: their embedding has a mark that no
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


def test_onset(lm):
    onset = onset_of(lm)
    assert (onset.layer, onset.dims) == (LAYER, (DIM,))
    ids = encode(lm, default_prompts()[:1])[0][0]
    hidden = capture(lm, torch.tensor([ids]), [f"residual[{LAYER}]"])[f"residual[{LAYER}]"]
    assert bool(onset.massive(hidden)[0, 0, 0])
    assert onset.means[DIM][0] == pytest.approx(float(hidden[0, 0, DIM]), rel=0.5)
    controls = control_dims(lm, onset, seed=0)
    assert all(len(dims) == 1 and DIM not in dims for dims in controls.values())


def test_where(lm, folder):
    result = run("massive-activations/where", lm, folder, limit=2, window=64, text=str(folder / "text.txt"))
    _, classes, dims, by_layer = result.tables
    assert {row[1] for row in dims.rows} == {DIM}
    assert dims.rows[0][3] == LAYER
    first = next(row for row in classes.rows if row[1] == "first")
    assert first[3] >= 12  # of the twelve prompts each first token, and perhaps those of the text
    assert by_layer.rows[LAYER][-1] == 0  # the row of the layer before: the embedding comes first
    assert by_layer.rows[LAYER + 1][-1] > 0.8


def test_zero_or_mean(lm, folder):
    (folder / "short.txt").write_text("a", encoding="utf-8")
    result = run(
        "massive-activations/zero-or-mean",
        lm,
        folder,
        limit=6,
        windows=3,
        texts=f"proof,{folder}/short.txt",
        tasks="piqa,hellaswag",
    )
    scores, change = result.tables
    assert "short.txt is not here" in scores.note
    assert "hellaswag is not here" in scores.note
    moved = {row[0]: abs(np.log(row[1].interval.value)) for row in change.rows}
    assert moved["massive to zero"] > 3 * moved["massive to their mean"]
    assert moved["massive to zero"] > 3 * moved["control: median-like to zero"]


def test_no_op_heads(lm, folder):
    result = run("massive-activations/no-op-heads", lm, folder, limit=6, draws=3)
    phases, by_layer = result.tables
    assert len(by_layer.rows) == lm.anatomy.heads - 1
    mass = [row[1].value for row in by_layer.rows]
    assert all(0 <= value <= 1 for value in mass)
    assert {row[0].split(":")[0] for row in phases.rows} == {"before", "after"}


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


@pytest.mark.real
def test_onset_of_the_built_in_model():
    lm = load("smollm2", dtype=REAL_DTYPE)
    onset = onset_of(lm)
    assert (onset.layer, 507 in onset.dims) == (11, True)
    assert {entry.token_class for entry in onset.found} == {"first"}
    controls = control_dims(lm, onset, seed=0)
    assert all(len(dims) == len(onset.dims) for dims in controls.values())

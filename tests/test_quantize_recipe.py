"""quantize --plan: each fused group in the format that a recipe gives it, in files, memory and plain transformers."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from architected import built
from checkpoints import checkpoint
from studfinder.cli.app import run_cli
from studfinder.errors import StudfinderError
from studfinder.models import LM, content_hash, load
from studfinder.models.card import model_card
from studfinder.quantizers import AWQ, GPTQ, RTN, quantize_weight, quantized, targets
from studfinder.quantizers.export import meant_module
from studfinder.quantizers.targets import by_fused
from studfinder.records import Recipe, RecipeGroup, to_json
from studfinder.records.scheme import format_named
from studfinder.verbs.plan import plan
from studfinder.verbs.quantize import quantize
from tiny import tiny, token_ids, tokenizer

FORMATS = ("int4-channel", "int5-channel", "int8-channel", "fp8", "fp8+fp8", "int8-channel+int8", "16")


def drawn(lm: LM, seed: int, formats=FORMATS) -> Recipe:
    """A recipe with a format drawn for each fused group, every one of them at least once where there is room."""
    groups = list(by_fused(targets(lm)).items())
    said = [formats[number % len(formats)] for number in range(len(groups))]
    random.Random(seed).shuffle(said)
    # plain transformers knows one scheme of experts
    said = [one if group[0].part is None else "int4-channel" for one, (_, group) in zip(said, groups, strict=True)]
    return Recipe(
        model=model_card(lm, content_hash(lm)),
        decided="a draw",
        groups=tuple(
            RecipeGroup(name=fused, members=tuple(target.modules[0] for target in group), stored_as=stored)
            for (fused, group), stored in zip(groups, said, strict=True)
        ),
        versions={},
    )


def told(out) -> dict[str, tuple]:
    """What a checkpoint's config says of each module: weights and inputs, in a few words."""
    settings = json.loads((out / "config.json").read_text())["quantization_config"]
    found = {}
    for group in settings["config_groups"].values():
        weights, acts = group["weights"], group["input_activations"]
        rounded = None if acts is None else (acts["num_bits"], acts["type"])
        words = (weights["num_bits"], weights["type"], weights["strategy"], weights["group_size"], rounded)
        found |= dict.fromkeys(map(meant_module, group["targets"]), words)
    return found


def meant_by(name: str) -> tuple:
    format = format_named(name)
    scheme = format.weights
    group = scheme.block if isinstance(scheme.block, int) else None
    kind = "int" if scheme.integer else "float"
    acts = None if format.inputs is None else (8, "float" if format.inputs.element == "fp8" else "int")
    return scheme.bits, kind, "channel" if group is None else "group", group, acts


@pytest.mark.parametrize("kind", ["llama", "phi3", "mixtral", "deepseek_v3", "gemma3_text", "gpt_neox"])
def test_every_matrix_has_the_format_that_the_recipe_gives_it(tmp_path, kind):
    lm = load(built(kind))
    recipe = drawn(lm, 1)
    done = quantize(lm, plan=recipe, out=tmp_path / "out")
    assert "bit-equal" in done.verified
    said = told(tmp_path / "out")
    formats = {name: stored for name, stored in recipe.formats.items() if stored != "16"}
    assert said == {name: meant_by(stored) for name, stored in formats.items()}


def test_files_and_memory_give_the_same_bytes(tmp_path):
    source = checkpoint(tmp_path / "m")
    recipe = drawn(load(source), 2)
    (tmp_path / "recipe.json").write_text(to_json(recipe))
    assert (
        run_cli(["quantize", str(source), "--plan", str(tmp_path / "recipe.json"), "--out", str(tmp_path / "a")]) == 0
    )
    quantize(load(source), plan=recipe, out=tmp_path / "b")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert told(tmp_path / "a") == told(tmp_path / "b")


@pytest.mark.parametrize("method", [RTN(), GPTQ(), AWQ(duo=False, clip=None)], ids=lambda method: type(method).__name__)
def test_a_method_rounds_each_matrix_in_its_own_scheme(method):
    lm = tiny("llama")
    schemes = {target.name: format_named(FORMATS[number % 4]).weights for number, target in enumerate(targets(lm))}
    windows = token_ids().tolist()
    before = lm.model(token_ids()).logits
    with quantized(lm, method, schemes=schemes, windows=windows) as bench:
        assert {name: made.scheme for name, made in bench.done.items()} == schemes
        if isinstance(method, RTN):
            whole = {target.name: target for target in targets(tiny("llama"))}
            for name, made in bench.done.items():
                expected = quantize_weight(whole[name].weight(tiny("llama")), schemes[name]).dequantized()
                assert torch.equal(made.dequantized(), expected)
        assert not torch.equal(lm.model(token_ids()).logits, before)
    assert torch.equal(lm.model(token_ids()).logits, before)


def test_the_bits_are_what_each_matrix_costs(tmp_path):
    lm = tiny("llama")
    formats = {target.name: FORMATS[(0, 2)[number % 2]] for number, target in enumerate(targets(lm))}
    with quantized(lm, RTN(), schemes={name: format_named(f).weights for name, f in formats.items()}) as bench:
        costs = [(made.codes_RC.numel(), made.bits) for made in bench.done.values()]
        assert bench.bits == pytest.approx(bench.planned)
    assert bench.bits == pytest.approx(sum(n * bits for n, bits in costs) / sum(n for n, _ in costs))


@pytest.mark.parametrize("scheme", ["fp8+fp8", "int8-channel+int8"])
def test_inputs_are_rounded_where_the_scheme_says_so(tmp_path, scheme):
    source = checkpoint(tmp_path / "m")
    assert run_cli(["quantize", str(source), "--scheme", scheme, "--out", str(tmp_path / "out")]) == 0
    assert set(told(tmp_path / "out").values()) == {meant_by(scheme)}


def test_what_does_not_fit_is_refused_in_a_line(tmp_path):
    lm = tiny("llama")
    recipe = drawn(lm, 3, ("int4-channel", "int8-channel"))
    first, *rest = recipe.groups
    split = [RecipeGroup(name=m, members=(m,), stored_as=f) for m, f in zip(first.members, FORMATS, strict=False)]

    def changed(*groups: RecipeGroup) -> Recipe:
        return replace(recipe, groups=groups)

    def alone(stored: str) -> RecipeGroup:
        return replace(first, stored_as=stored)

    gone = RecipeGroup(name="x", members=("model.layers.9.mlp.down_proj",), stored_as="fp8")
    wrong = (
        (changed(*split, *rest), "splits what engines run as one"),
        (changed(*recipe.groups, gone), r"names model\.layers\.9\.mlp\.down_proj"),
        (
            changed(*(replace(group, stored_as="16") for group in recipe.groups)),
            "leaves",
        ),
        (changed(alone("int4-g7")), "do not divide"),
        (
            changed(alone("fp8+nvfp4")),
            "not rounded here",
        ),
    )
    for one, message in wrong:
        with pytest.raises(StudfinderError, match=message):
            quantize(lm, plan=one, out=tmp_path / "out")
    with pytest.raises(StudfinderError, match="weights"):
        quantize(tiny("llama", seed=7), plan=recipe, out=tmp_path / "out")
    with pytest.raises(StudfinderError, match="does not say which numbers are kept"):
        quantize(lm, scheme="int4-channel-keep0.1%", out=tmp_path / "out")
    with pytest.raises(StudfinderError, match="one or the other"):
        quantize(lm, plan=recipe, bits=4, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_budget_of_before_is_refused_in_a_line(tmp_path, capsys):
    assert run_cli(["quantize", "smollm2", "--auto", "0.02", "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "studfinder plan --kl" in line
    assert not (tmp_path / "out").exists()


def test_what_a_recipe_does_not_name_stays_as_it_is(tmp_path):
    lm = tiny("llama")
    recipe = drawn(lm, 4, ("int8-channel",))
    part = Recipe(model=recipe.model, decided="a draw", groups=recipe.groups[:1], versions={})
    done = quantize(lm, plan=part, out=tmp_path / "out")
    assert set(told(tmp_path / "out")) == set(recipe.groups[0].members)
    assert any("does not name" in note for note in done.notes)


def test_what_plain_transformers_cannot_read_of_several_schemes_is_refused_before_any_work(tmp_path):
    lm = load(built("mixtral"))
    recipe = drawn(lm, 5, ("int4-channel", "int5-channel"))
    said = [("int5-channel", "int4-channel")[number % 2] for number in range(len(recipe.groups))]
    groups = tuple(replace(one, stored_as=stored) for one, stored in zip(recipe.groups, said, strict=True))
    mixed = replace(recipe, groups=groups)
    with pytest.raises(StudfinderError, match="experts of one scheme"):
        quantize(lm, plan=mixed, format="pack-quantized", out=tmp_path / "out")
    zeros = drawn(lm, 5, ("int4-channel-zero", "int5-channel-zero"))
    with pytest.raises(StudfinderError, match="packed zero points"):
        quantize(lm, plan=zeros, format="pack-quantized", out=tmp_path / "out")
    done = quantize(lm, plan=zeros, out=tmp_path / "dense")
    assert done.stored_as == "dense"
    assert any("packed zero points" in note for note in done.notes)
    said = quantize(lm, plan=zeros, format="pack-quantized", verify=False, out=tmp_path / "unread").notes
    assert any("for engines only: plain transformers reads packed zero points" in note for note in said)
    lm = load(built("mamba"))  # reads its weights without its modules' forward
    with pytest.raises(StudfinderError, match="these have several"):
        quantize(lm, plan=drawn(lm, 1, ("int4-channel", "fp8")), out=tmp_path / "out")
    quantize(lm, plan=drawn(lm, 1, ("int4-channel", "fp8")), format="dense", out=tmp_path / "out")


def test_a_plan_is_carried_out_with_the_numbers_that_it_keeps(tmp_path):
    tiny("llama").model.to(torch.bfloat16).save_pretrained(tmp_path / "m")
    tokenizer().save_pretrained(tmp_path / "m")
    source = tmp_path / "m"
    lm = load(source, dtype="float32")
    formats = ("int4-channel-keep1%", "int4-channel", "int8-channel", "16")
    made = plan(lm, bits=6, formats=formats, judges=0, out=tmp_path / "plan")
    assert any("keep" in group.stored_as for group in made.solution().groups)
    done = quantize(source, plan=tmp_path / "plan", out=tmp_path / "out")
    assert done.bits == pytest.approx(made.solution().bits, rel=1e-6)
    assert done.stored_as == "dense"
    assert any("place for the numbers" in note for note in done.notes)
    assert any("held out" in line for line in done.kept)
    with pytest.raises(StudfinderError, match="the run's folder"):
        quantize(source, plan=made, out=tmp_path / "other")
    tools = ("llm-compressor", "gptqmodel")
    several = plan(
        lm, bits=8.4, formats=("int8-g16", "int4-g32", "16"), tools=tools, judges=0, out=tmp_path / "several"
    )
    with pytest.raises(StudfinderError, match="none for quantize"):
        quantize(source, plan=several, out=tmp_path / "other")
    one = plan(lm, bits=9, tools=tools[:1], judges=0, out=tmp_path / "one")
    assert quantize(source, plan=one, out=tmp_path / "ours").bits == pytest.approx(one.solution().bits, rel=1e-6)

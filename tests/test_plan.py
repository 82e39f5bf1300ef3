"""sf.plan: what is predicted, what is chosen, what it costs, and that nothing is chosen on what it is judged on."""

from __future__ import annotations

import itertools
import json
import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import escape

import studfinder as sf
from checkpoints import checkpoint
from studfinder.cli.app import run_cli
from studfinder.errors import StudfinderError
from studfinder.measures import effects_of
from studfinder.measures.divergence import Clean
from studfinder.models import LM
from studfinder.passes import gradients, sampled_likelihood
from studfinder.quantizers import RTN
from studfinder.quantizers.apply import running
from studfinder.quantizers.budget import cheapest
from studfinder.quantizers.formats import PLAN_FORMATS, candidate, candidates, group_size
from studfinder.quantizers.method import method_class
from studfinder.quantizers.mixed import mixed_bench, mixed_stream
from studfinder.quantizers.sensitivity import rounding_error, sensitivities
from studfinder.quantizers.targets import by_fused, targets
from studfinder.recipes import mlx, rule_set, tool_named, written
from studfinder.records import UNTOUCHED, ModelCard, Plan, Recipe, RecipeGroup, Sensitivity
from studfinder.runs import read
from studfinder.texts import batches, default_prompts, proof_text
from studfinder.verbs.configs import PlanConfig
from studfinder.verbs.plan import plan, plan_run, ready_plan
from studfinder.verbs.plan_tools import CANDIDATES
from tiny import prompts, tiny, tokenizer

NAMES = ("int4-g16", "int4-g8-zero", "int8-channel", "int4-g16-keep2%", UNTOUCHED)
ARCHITECTURES = ("llama", "qwen3", "gemma3_text", "phi3", "gpt2", "opt", "mixtral", "lfm2")


def live(architecture: str = "llama", **options) -> LM:
    made = tiny(architecture, **options)
    return replace(made, tokenizer=tokenizer())


@contextmanager
def rounded(lm: LM, formats, kept):
    """The live model with every group in its format."""
    bench = mixed_bench(lm, formats, kept, targets(lm))
    with running(bench, RTN()):
        yield bench


def quick(lm: LM, out: Path, **more) -> Plan:
    return plan(lm, **{"bits": 6, "formats": NAMES, "judges": 4, "out": out, **more})


MODEL = ModelCard(
    id="m",
    origin="made",
    architecture="llama",
    content_hash="0" * 64,
    dtype="float32",
    **dict.fromkeys(("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocabulary"), 4),
    parameters=1,
    train_length=8,
    train_length_source="here",
)


# --- the solver -----------------------------------------------------------------------------------------------------


@st.composite
def knapsacks(draw):
    groups, formats = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    number = st.floats(1e-6, 1.0)
    costs = {f"g{g}": {f"f{f}": draw(number) for f in range(formats)} for g in range(groups)}
    sizes = {f"g{g}": {f"f{f}": float(draw(st.integers(1, 60))) for f in range(formats)} for g in range(groups)}
    return costs, sizes, draw(st.floats(0, 1))


@settings(deadline=None, max_examples=60)
@given(knapsacks())
def test_the_solver_is_exact(drawn) -> None:
    costs, sizes, where = drawn
    every = [dict(zip(costs, names, strict=True)) for names in itertools.product(*costs.values())]
    size_of = [sum(sizes[group][name] for group, name in one.items()) for one in every]
    cost_of = [sum(costs[group][name] for group, name in one.items()) for one in every]
    size = min(size_of) + where * (max(size_of) - min(size_of))
    found = cheapest(costs, sizes, size=size)
    best = min(cost for cost, own in zip(cost_of, size_of, strict=True) if own <= size * (1 + 1e-9))
    assert found.cost == pytest.approx(best, rel=1e-5)
    assert found.size <= size * (1 + 1e-8)
    cost = min(cost_of) + where * (max(cost_of) - min(cost_of))
    found = cheapest(costs, sizes, cost=cost)
    fewest = min(own for own, one in zip(size_of, cost_of, strict=True) if one <= cost * (1 + 1e-9))
    assert found.size == pytest.approx(fewest, rel=1e-5)


def test_a_budget_that_nothing_fits_says_what_would() -> None:
    with pytest.raises(StudfinderError, match="the least is 7"):
        cheapest({"a": {"x": 1.0}}, {"a": {"x": 7.0}}, size=5)


def test_what_the_solver_says_by_itself_is_not_heard(monkeypatch, capfd) -> None:
    import scipy.optimize

    real = scipy.optimize.milp

    def loud(*args, **options):
        os.write(1, b"tmpSolver.run();")
        return real(*args, **options)

    monkeypatch.setattr(scipy.optimize, "milp", loud)
    assert cheapest({"a": {"x": 1.0}}, {"a": {"x": 7.0}}, size=8).formats == {"a": "x"}
    os.write(1, b"ours")
    assert capfd.readouterr().out == "ours"


# --- formats --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLAN_FORMATS)
def test_a_format_is_read_back_by_its_name(name) -> None:
    assert candidate(name).name == name


@pytest.mark.parametrize(
    "name", ["int4", "int4-g64-keep", "int4-g64-keep0%", "int4-g64-keep60%", "16-keep1%", "fp8+fp8"]
)
def test_what_is_no_format_is_refused(name) -> None:
    with pytest.raises(StudfinderError):
        candidate(name)


@pytest.mark.parametrize("tool", CANDIDATES)
def test_each_tool_has_a_place_for_its_candidates_and_for_mixtures_of_them(tool) -> None:
    groups = tuple(
        RecipeGroup(name=f"m.{place}", members=(f"m.{place}",), shapes=((64, 128),), stored_as=name, layer=place)
        for place, name in enumerate(CANDIDATES[tool])
    )
    recipe = Recipe(model=MODEL, decided="by a test", groups=groups, versions={})
    if tool != "llama.cpp":  # which has names of its own, of known architectures alone
        assert MODEL.content_hash in written(recipe, tool)
    for name in CANDIDATES[tool]:
        if name != UNTOUCHED:
            assert tool_named(tool).spelled(name)


# --- what is predicted ----------------------------------------------------------------------------------------------


def test_predictions_are_what_they_say_they_are() -> None:
    """The diagonal and the directional form, from the gradients themselves."""
    lm, windows, draws = tiny("llama"), prompts(), 2
    chosen, found = candidate("int4-g16"), targets(lm)
    made = sensitivities(lm, windows, [chosen], found, draws=draws)
    errors = {target.ref.parameter: rounding_error(target.weight(lm), chosen) for target in found}
    tokens, group = sum(map(len, windows)), by_fused(found)["model.layers.1.mlp.gate_proj+up_proj"]
    names = [target.ref.parameter for target in group]
    squares, along = 0.0, {}
    for piece in gradients(lm, list(batches(windows)), sampled_likelihood(draws), parameters=names):
        for name, gradient in piece.parameters.items():
            squares += float((gradient.square() * errors[name].square()).sum(dtype=torch.float64))
            key = piece.batch.prompts, piece.draw
            along[key] = along.get(key, 0.0) + float((gradient * errors[name]).sum(dtype=torch.float64))
    cost = made.costs[group[0].fused]["int4-g16"]
    assert cost.kl == pytest.approx(squares / draws / tokens / 2, rel=1e-4)
    assert cost.together == pytest.approx(sum(one**2 for one in along.values()) / draws / tokens / 2, rel=1e-3)
    assert 0 < cost.error < cost.kl


def test_predictions_are_near_what_is_measured() -> None:
    """Of a tiny random model all of whose groups are rounded, each by itself; nats per token."""
    lm, windows = tiny("llama"), prompts((24, 20, 28, 22, 26, 24))
    chosen, found = candidate("int4-g16"), targets(lm)
    made = sensitivities(lm, windows, [chosen], found, draws=24)
    groups = list(by_fused(found))
    streams = [mixed_stream(lm, {group: chosen}, {}, found) for group in groups]
    effects = effects_of(lm, windows, streams)
    measured = effects.kl.sum(axis=1) / effects.tokens.sum()
    predicted = np.array([made.costs[group]["int4-g16"].kl for group in groups])
    assert np.all((predicted / measured > 0.4) & (predicted / measured < 2.5)), predicted / measured
    assert predicted.sum() == pytest.approx(measured.sum(), rel=0.35)


def test_kept_numbers_are_those_that_cost_most_and_stay() -> None:
    lm, windows = tiny("llama"), prompts()
    plain, keeping = candidates(["int4-g16", "int4-g16-keep2%"])
    found = targets(lm)
    made = sensitivities(lm, windows, [plain, keeping], found)
    assert all(own[keeping.name].kl < own[plain.name].kl for own in made.costs.values())
    target = found[0]
    before = target.weight(lm).clone()
    with rounded(lm, dict.fromkeys(by_fused(found), keeping), made.kept):
        same = (target.weight(lm) == before).flatten()
        places = made.kept[keeping.name, target.name]
        assert len(places) == int(0.02 * before.numel())
        assert bool(same[places].all())
        assert int(same.sum()) < before.numel() / 2
    assert torch.equal(target.weight(lm), before)


# --- laws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_bits_of_a_plan_are_what_quantising_costs(architecture, tmp_path) -> None:
    lm = live(architecture, dtype=torch.bfloat16)
    made = quick(lm, tmp_path / "p")
    found, solution = targets(lm), made.solution()
    formats = {group.name: candidate(group.stored_as) for group in solution.groups}
    costs = sensitivities(lm, ready_plan(lm, PlanConfig(bits=6)).text.choosing, candidates(NAMES), found)
    with rounded(lm, formats, costs.kept) as bench:
        assert bench.bits == pytest.approx(solution.bits, rel=1e-9)
    assert solution.bits <= 6
    assert solution.size * 8 == pytest.approx(
        solution.bits * sum(group.weights for group in solution.groups)
        + 16 * (made.model.parameters - sum(group.weights for group in solution.groups)),
        abs=8,
    )
    shapes = {name: tuple(t.weight(lm).shape for t in own) for name, own in by_fused(found).items()}
    assert {group.name: group.shapes for group in solution.groups} == shapes
    sizes = [group_size(lm, by_fused(found)[group.name], formats[group.name]) for group in solution.groups]
    assert sum(sizes) == pytest.approx(solution.bits * sum(group.weights for group in solution.groups))


def test_a_model_is_as_it_was(tmp_path) -> None:
    lm = live()
    before = {name: one.clone() for name, one in lm.model.state_dict().items()}
    quick(lm, tmp_path / "p")
    assert all(torch.equal(one, before[name]) for name, one in lm.model.state_dict().items())


def test_nothing_is_chosen_on_the_text_that_judges(tmp_path) -> None:
    lm = live()
    assert not {one.text for one in default_prompts()} & {one.text for one in proof_text()}
    one, other = (quick(lm, tmp_path / f"p{count}", judges=count) for count in (3, 6))
    assert one.solution().kl != other.solution().kl
    assert one.solution().groups == other.solution().groups
    none = quick(lm, tmp_path / "none", judges=0)
    assert none.solution().groups == one.solution().groups
    assert none.solution().kl is None
    assert none.solution().better is None


def test_a_text_is_cut_into_windows_that_choose_and_others_that_judge(tmp_path) -> None:
    lm = live()
    words = " ".join(f"w{3 + place * 7 % 90}" for place in range(400))
    (tmp_path / "t.txt").write_text(words)
    config = PlanConfig(bits=6, text=tmp_path / "t.txt", windows=3, judges=2, length=40)
    text = ready_plan(lm, config).text
    joined = [token for ids in (*text.choosing, *text.judging) for token in ids[-39:]]
    assert [len(text.choosing), len(text.judging)] == [3, 2]
    assert len(joined) == 5 * 39
    with pytest.raises(StudfinderError, match="too few"):
        ready_plan(lm, replace(config, windows=30))
    with pytest.raises(StudfinderError, match="no chat template"):
        ready_plan(lm, replace(config, chat_template=True))


def test_an_interrupted_plan_goes_on_and_ends_the_same(tmp_path) -> None:
    lm = live()
    whole = quick(lm, tmp_path / "whole")
    for stop in ("predicting", "judging"):

        def progress(what: str, done: int, total: int, stop: str = stop) -> None:
            if what == stop and done >= total - 1:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            quick(lm, tmp_path / stop, progress=progress)
        seen: list[str] = []

        def told(what: str, done: int, total: int, seen: list[str] = seen) -> None:
            seen.append(what)

        again = quick(lm, tmp_path / stop, progress=told)
        assert again.solutions == whole.solutions
        assert ("predicting" in seen) == (stop == "predicting")
        kept = (tmp_path / stop / "kept.safetensors").read_bytes()
        assert kept == (tmp_path / "whole" / "kept.safetensors").read_bytes()


def test_another_budget_from_costs_that_are_known(tmp_path) -> None:
    lm = live()
    quick(lm, tmp_path / "six")
    seen: list[str] = []
    again = quick(lm, tmp_path / "five", bits=5.5, earlier=tmp_path / "six", progress=lambda w, d, t: seen.append(w))
    anew = quick(lm, tmp_path / "anew", bits=5.5)
    assert "predicting" not in seen
    assert again.solutions == anew.solutions
    with pytest.raises(StudfinderError, match="of another model"):
        quick(live(seed=1), tmp_path / "other", earlier=tmp_path / "six")
    with pytest.raises(StudfinderError, match="no costs in nvfp4"):
        quick(lm, tmp_path / "more", earlier=tmp_path / "six", formats=("int4-g16", "nvfp4"))


def test_a_plan_within_nats_is_measured_to_be_within_them(tmp_path) -> None:
    lm = live()
    least = quick(lm, tmp_path / "least", bits=5.2, score="gradient").solution()
    made = quick(lm, tmp_path / "p", bits=None, kl=least.predicted / 3).solution()
    assert made.bits > least.bits
    assert made.kl is not None
    assert made.kl.value < least.kl.value


def test_a_size_is_that_of_the_whole_file(tmp_path) -> None:
    lm = live()
    six = quick(lm, tmp_path / "six")
    made = quick(lm, tmp_path / "p", bits=None, size=f"{six.solution().size // 1000 + 1}KB")
    assert made.solution().size <= 1000 * (six.solution().size // 1000 + 1)
    assert made.solution().bits >= six.solution().bits


def test_measured_scores_are_of_every_group_and_format(tmp_path) -> None:
    lm = live()
    made = quick(lm, tmp_path / "p", score="measured")
    costs = read(tmp_path / "p", Sensitivity)
    assert all(
        (cost.measured is None) == (cost.stored_as == UNTOUCHED) for group in costs.groups for cost in group.costs
    )
    assert {group.basis for group in made.solution().groups if group.stored_as != UNTOUCHED} == {"measured"}


# --- what is written, what is refused -------------------------------------------------------------------------------


def test_records_pages_and_recipes(tmp_path, capsys) -> None:
    folder = checkpoint(tmp_path / "m")
    command = ["plan", str(folder), "--bits", "6", "--judges", "3", "--out", str(tmp_path / "p")]
    command += ["--formats", "int4-g16,int8-channel,16", "--for", "mlx", "--for", "llm-compressor"]
    assert run_cli([*command, "--dry-run"]) == 0
    assert str(tmp_path / "p") in capsys.readouterr().out
    assert not (tmp_path / "p").exists()
    assert run_cli([*command[:-4], "--skip", "*layers.0.mlp.down_proj"]) == 0
    said = capsys.readouterr().out
    assert f"quantize {folder} --plan {tmp_path / 'p'}" in said
    made = sf.read(tmp_path / "p")
    assert isinstance(made, Plan)
    assert made.model.dtype == "float32"
    assert "model.layers.0.mlp.down_proj" in [one.module for one in made.left_out]
    recipe = made.recipe()
    assert isinstance(recipe, Recipe)
    assert recipe.formats["model.layers.0.mlp.down_proj"] == "16"
    assert set(recipe.formats) == {name for target in targets(sf.load(folder)) for name in target.modules} | {"lm_head"}
    (tmp_path / "p" / "report.html").unlink()
    assert run_cli(["report", str(tmp_path / "p")]) == 0
    page = (tmp_path / "p" / "report.html").read_text()
    assert f'data-copy="studfinder quantize {folder} --plan {tmp_path / "p"} --out' in page
    assert {"figure-skyline.png", "figure-bits.png", "figure-beside.png"} <= {
        one.name for one in (tmp_path / "p").iterdir()
    }
    assert "The plan beside others" in page
    assert run_cli(command[:-4]) == 2  # another run is there
    assert "skip was" in capsys.readouterr().err


def test_a_solution_a_tool(tmp_path) -> None:
    lm = live(seed=3)
    made = plan(lm, bits=9, tools=("llm-compressor", "modelopt"), judges=0, out=tmp_path / "p")
    assert [one.tool for one in made.solutions] == ["llm-compressor", "modelopt"]
    for one in made.solutions:
        assert {group.stored_as for group in one.groups} <= {*CANDIDATES[one.tool], UNTOUCHED}
        text = (tmp_path / "p" / tool_named(one.tool).FILE).read_text()
        assert made.model.content_hash in text
        assert f'data-copy="{escape(text)}"' in (tmp_path / "p" / "report.html").read_text()
    assert rule_set(__import__("yaml").safe_load((tmp_path / "p" / "llm-compressor.yaml").read_text())) is not None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "needs a budget"),
        ({"bits": 4, "kl": 0.1}, "one budget"),
        ({"bits": 2.0, "formats": NAMES}, "bits a weight: the fewest are"),
        ({"bits": 5.0, "tools": ("exllama",)}, "there is no tool"),
        ({"bits": 5.0, "tools": ("mlx",), "formats": ("int4-channel",)}, "takes none of"),
        ({"bits": 5.0, "skip": ("*",)}, "everything is skipped"),
        ({"size": "1KB"}, "what is not planned takes"),
        ({"size": "much"}, "no amount"),
        ({"bits": 5.0, "formats": ("q4",)}, "there is no scheme"),
    ],
)
def test_mistakes_are_said(given, said, tmp_path) -> None:
    with pytest.raises(StudfinderError, match=said):
        plan(live(), **given, judges=2, out=tmp_path / "p")
    assert not (tmp_path / "p").exists() or not (tmp_path / "p" / "plan.json").exists()


def test_the_dry_run_says_where_it_would_go(tmp_path) -> None:
    ready = ready_plan(live(), PlanConfig(bits=6, formats=NAMES, out=tmp_path / "p"))
    assert plan_run(ready).path == tmp_path / "p"


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_plan_is_judged_with_the_method_that_it_is_for(method, tmp_path, monkeypatch) -> None:
    """What is measured is the live model as that method leaves it, and the model is as before."""
    lm = live(seed=2)
    random = np.random.default_rng(0)
    calibration = [random.integers(0, 64, 24).tolist() for _ in range(3)]
    monkeypatch.setattr("studfinder.verbs.plan.calibration_windows", lambda *_, **__: ("", calibration))
    before = {name: one.clone() for name, one in lm.model.named_parameters()}
    names = ("int3-g16", "int8-channel", UNTOUCHED)
    made = plan(lm, bits=6, formats=names, judges=3, score="gradient", method=method, out=tmp_path / "p")
    assert all(torch.equal(one, before[name]) for name, one in lm.model.named_parameters())
    solution = made.solution()
    formats = {group.name: candidate(group.stored_as) for group in solution.groups}
    config = method_class(method)()
    bench = mixed_bench(lm, formats, {}, targets(lm), config, calibration)
    windows = ready_plan(lm, PlanConfig(bits=6, judges=3)).text.judging
    logits = [logits_of(lm, ids) for ids in windows]
    with running(bench, config):
        kl = [
            clean.against([logits_of(lm, ids)[0]])[0].double().sum()
            for ids, clean in zip(windows, map(clean_of, windows, logits), strict=True)
        ]
    assert solution.kl.value == pytest.approx(float(sum(kl)) / sum(len(ids) - 1 for ids in windows), rel=1e-4)
    assert any(method in note for note in made.notes)
    nearest = plan(lm, bits=6, formats=names, judges=3, score="gradient", out=tmp_path / "q").solution()
    assert [group.stored_as for group in nearest.groups] == [group.stored_as for group in solution.groups]
    assert nearest.kl.value != pytest.approx(solution.kl.value, rel=1e-3)


def logits_of(lm: LM, ids) -> tuple[torch.Tensor]:
    with torch.no_grad():
        return (lm.model(input_ids=torch.tensor([ids])).logits[0, :-1].float(),)


def clean_of(ids, logits) -> Clean:
    return Clean(logits, torch.tensor(ids[1:]))


def test_sensitivities_are_given_as_mlx_reads_them(tmp_path) -> None:
    lm = live(seed=5)
    plan(lm, bits=12, formats=("mxfp4", "int4-g32-float"), tools=("mlx",), judges=0, out=tmp_path / "p")
    pairs = json.loads((tmp_path / "p" / mlx.SENSITIVITIES).read_text())
    costs = read(tmp_path / "p", Sensitivity)
    assert sorted(path for path, _ in pairs) == sorted(m for group in costs.groups for m in group.modules)
    assert [score for _, score in pairs] == sorted((score for _, score in pairs), reverse=True)
    scored = 0
    for group in costs.groups:
        own = {one.stored_as: one.kl for one in group.costs}
        less = own["mxfp4"] - own["int4-g32-float"] if "mxfp4" in own else 0.0
        scored += less != 0
        assert dict(pairs)[group.modules[0]] == pytest.approx(less / (group.weights / 1e6), rel=1e-6)
    assert scored

"""A config record is the keywords in Python, the options of the command line, and a run's identity."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import pytest

import studfinder as sf
from checkpoints import PROMPT, checkpoint
from faced import parsed
from scanned import findings_for
from studfinder.cli.app import run_cli
from studfinder.errors import StudfinderError
from studfinder.models import load
from studfinder.records import MassiveValue, to_json
from studfinder.records.config import Config, described, identity, makes, option, replaced, takes
from studfinder.records.loading import ReadConfig
from studfinder.verbs.configs import ExperimentConfig, MeasureConfig, QuantizeConfig, ScanConfig, TrainConfig
from studfinder.verbs.measure import plan_measure
from studfinder.verbs.quantize import quantize, run_quantize
from studfinder.verbs.quantize_plan import plan_quantize
from studfinder.verbs.scan import plan_scan
from tiny import tiny, tokenizer

CONFIGS = (ScanConfig, MeasureConfig, QuantizeConfig, TrainConfig, ExperimentConfig)
DOWN = "model.layers.1.mlp.down_proj.weight"


@dataclass(frozen=True, kw_only=True)
class Tea(Config):
    kind: Literal["green", "black"] = option("green", help="Which.")
    cups: int = option(2, least=1, help="How many.")
    hot: bool = option(True, help="Or not.")
    sugar: float | None = option(None, least=0, most=5, help="Spoons.")
    guests: Sequence[str] = option((), commas=True, help="Who comes.")
    cakes: Sequence[float] = option((1, 0.5), help="Of each kind.")
    tray: Any = option(None, line=False, identity=False)
    later: int | None = option(None, late=True)


@takes(Tea)
def brew(pot: str, config: Tea) -> tuple[str, Tea]:
    """Brew."""
    return pot, config


@makes(Tea)
def pour(config: Tea) -> Tea:
    """Pour."""
    return config


# --- the record -------------------------------------------------------------------------------------------------------


def test_a_verb_takes_a_config_or_its_fields():
    assert brew("pot", cups=3) == brew("pot", Tea(cups=3)) == brew("pot", config=Tea(cups=3))
    assert pour(cups=3) == pour(Tea(cups=3)) == Tea(cups=3)
    assert list(inspect.signature(brew).parameters)[:3] == ["pot", "kind", "cups"]
    assert "cups: How many." in brew.__doc__


def test_what_a_verb_does_not_take_is_named_with_what_is_near():
    with pytest.raises(StudfinderError, match="brew has no keyword 'cup'; expected cups"):
        brew("pot", cup=3)
    with pytest.raises(StudfinderError, match="brew with a config and cups"):
        brew("pot", Tea(), cups=3)
    with pytest.raises(StudfinderError, match="takes 1 positional"):
        pour("much")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "blak"}, "kind 'blak' is unknown; expected black"),
        ({"kind": "white"}, "expected green, black"),
        ({"cups": 0}, "--cups 0; expected 1 or more"),
        ({"cups": 2.5}, "--cups 2.5; expected a whole number"),
        ({"cups": "3"}, "--cups 3; expected a whole number"),
        ({"cups": True}, "--cups True"),
        ({"cups": None}, "--cups None"),
        ({"sugar": 6}, "expected 0 to 5"),
        ({"sugar": float("nan")}, "--sugar nan"),
        ({"hot": 1}, "--hot 1; expected true or false"),
        ({"guests": [1]}, "--guests 1; expected a text"),
    ],
)
def test_values_are_checked_in_one_place(values, said):
    with pytest.raises(StudfinderError, match=said):
        Tea(**values)


def test_several_are_a_tuple_however_they_are_given():
    assert Tea(guests="ann, bob").guests == Tea(guests=["ann", "bob"]).guests == ("ann", "bob")
    assert Tea(cakes=3).cakes == (3,)
    assert hash(Tea(cakes=[1, 2])) == hash(Tea(cakes=(1, 2)))


def test_text_is_read_by_the_type_of_the_field():
    given = {"kind": "black", "cups": "3", "hot": "false", "sugar": "none", "guests": "ann,bob", "cakes": "1,0.5"}
    read = replaced(Tea(sugar=1), given)
    assert read == Tea(kind="black", cups=3, hot=False, guests=("ann", "bob"))
    assert [type(one) for one in read.cakes] == [int, float]
    assert replaced(Tea(), {"cups": None}) == Tea()
    for change, said in (({"cup": "3"}, "no setting 'cup'; expected cups"), ({"hot": "yes"}, "true or false")):
        with pytest.raises(StudfinderError, match=said):
            replaced(Tea(), change, "tea")


def test_the_identity_is_the_fields_that_are_marked_to_be():
    assert set(identity(Tea(tray=1))) == {"kind", "cups", "hot", "sugar", "guests", "cakes"}
    assert identity(Tea(later=1))["later"] == 1  # said, where it is not what runs of before had


# --- the command line -------------------------------------------------------------------------------------------------


def test_options_make_the_record():
    words = ["--kind", "black", "--cups", "3", "--no-hot", "--sugar", "1", "--guests", "ann,bob"]
    assert parsed(Tea, [*words, "--cakes", "2", "--cakes", "3"]) == Tea(
        kind="black", cups=3, hot=False, sugar=1, guests=("ann", "bob"), cakes=(2, 3)
    )
    assert parsed(Tea, []) == Tea()


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_field_of_a_verb_is_an_option_with_a_word_of_help(kind, capsys):
    verb = kind.__name__.removesuffix("Config").lower()
    assert run_cli([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    for setting in described(kind):
        said = setting.option
        assert bool(said.help) != said.gone, setting.name
        assert (f"  {setting.flag} " in shown) == (said.line is not False and not said.gone), setting.name


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_option_of_a_verb_reaches_its_field(kind):
    samples = {int: "7", float: "0.25", str: "text", Path: "a/b"}
    base = ["--out", "o"] if kind is QuantizeConfig else []
    for setting in described(kind):
        if setting.option.line is False:
            continue
        text = setting.choices[-1] if setting.choices else samples.get(setting.kind, "")
        text = {"length": "400", "vocabulary": "400", "batch_size": "7"}.get(setting.name, text)
        on = setting.flag if setting.default is not True else f"--no-{setting.flag[2:]}"
        said = [on] if setting.kind is bool else [setting.flag, text]
        found = parsed(kind, [*([] if setting.name == "out" else base), *said])
        value = setting.default is not True if setting.kind is bool else setting.parsed(text)
        if setting.option.line is not True:
            value = (setting.kind(text),) if setting.many else setting.kind(text)
        assert getattr(found, setting.name) == value, setting.name


def test_loading_options_are_those_of_load():
    own = inspect.signature(load).parameters
    shared = {one.name: one.default for one in fields(ReadConfig)}
    # Whether a model is carried, or mapped in its own names, is what the verb needs, not what the user asks for.
    needed = ("model", "tokenizer", "carried", "own_names")
    assert shared == {name: own[name].default for name in own if name not in needed}


def test_loading_options_of_a_loaded_model_are_refused_and_a_name_is_loaded(tmp_path):
    folder = checkpoint(tmp_path / "m")
    found = sf.scan(folder, prompts=[PROMPT], prove=False, dtype="bfloat16")
    assert found.model.dtype == "bfloat16"
    with pytest.raises(StudfinderError, match="dtype of a model that is loaded already"):
        sf.scan(sf.load(folder), prompts=[PROMPT], dtype="bfloat16")


# --- identity ---------------------------------------------------------------------------------------------------------

SAME: dict[Any, dict[str, Any]] = {
    ScanConfig: {"out": "r", "overwrite": True, "batch_size": 2, "progress": print, "trust_remote_code": True},
    MeasureConfig: {"out": "r", "overwrite": True, "batch_size": 64, "progress": print, "allow_missing": True},
}
OTHER: dict[Any, dict[str, Any]] = {
    ScanConfig: {"bos": False, "train_length": 8, "iterative": True, "lam": 4.0, "prompts": ["w9"], "prove": True},
    MeasureConfig: {"limit": 3, "seed": 1, "measures": ("repetition",), "tasks": ("arithmetic",)},
}


@pytest.mark.parametrize(("kind", "plan"), [(ScanConfig, plan_scan), (MeasureConfig, plan_measure)])
def test_what_does_not_change_a_result_does_not_change_a_run(kind, plan, tmp_path):
    lm = load(tiny("llama").model, tokenizer())
    folder = checkpoint(tmp_path / "m")
    base = kind(prompts=[PROMPT], prove=False) if kind is ScanConfig else kind(measures="perplexity", limit=2)
    settings = plan(lm, base).settings
    for name, value in SAME[kind].items():
        if name in {one.name for one in fields(ReadConfig)}:  # loading: what it comes to is in the identity
            assert plan(folder, replace(base, **{name: value})).settings == plan(folder, base).settings, name
        else:
            assert plan(lm, replace(base, **{name: value})).settings == settings, name
    for name, value in OTHER[kind].items():
        assert plan(lm, replace(base, **{name: value})).settings != settings, name


# --- a dry run tells the truth ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"skip": "*.0.mlp.up_proj"},
        {"keep": "proven"},
        {"keep": "proven", "format": "dense"},
        {"keep_columns": "proven", "format": "dense"},
        {"keep_massive": "proven", "format": "dense"},
        {"keep_massive": "key", "format": "dense"},
        {"keep": "all"},
        {"keep": "none"},
        {"rebalance": "proven"},
        {"hold_fraction": 0.01, "format": "dense", "method": "gptq"},
    ],
    ids=str,
)
def test_a_dry_run_of_quantize_tells_the_truth(asked, tmp_path, capsys):
    source = checkpoint(tmp_path / "m")
    lm = load(source)
    places = [(DOWN, (3, 4), "proven"), (DOWN.replace("1", "0"), (5, 6), "inert")]
    scan = tmp_path / "scan"
    scan.mkdir()
    found = findings_for(lm, places if asked.get("keep") != "none" else places[1:])
    values = [MassiveValue(layer=1, tensor=one, head=0, dim=1, norm=1.0, ratio=9.0) for one in ("query", "key")]
    found = replace(found, massive_values=tuple(values))
    (scan / "findings.json").write_text(to_json(found))
    (tmp_path / "t.txt").write_text(" ".join(f"w{number % 40}" for number in range(200)))
    names = {"proven": str(scan), "all": f"{scan}#all", "none": str(scan), "key": f"{scan}#key"}
    asked = {name: names.get(value, value) if isinstance(value, str) else value for name, value in asked.items()}
    calibration = {"calibration": str(tmp_path / "t.txt"), "samples": 2, "length": 16}
    options = {**asked, **calibration, "out": str(tmp_path / "out"), "verify": False}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if name != "verify"]
    assert run_cli(["quantize", str(source), *words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    done = run_quantize(plan_quantize(str(source), QuantizeConfig(**options)))
    assert f"would quantise {done.quantized} matrices" in said
    assert f"{done.bits:.3f} bits a weight" in said
    assert f"as {done.stored_as}" in said
    for name in done.skipped:
        assert f"{'left whole, for what is kept in it' if name in done.instead else 'left whole'}: {name}" in said
    for note in done.notes:
        if "rebalanced" in note or "nothing is kept" in note:
            assert note in said
    held = [line for line in done.kept if line.startswith("in all ")]
    if held and not held[0].startswith("in all 0 "):
        assert held[0].removeprefix("in all ").removesuffix(" are held out") in said


def test_what_keeps_nothing_says_so_in_a_line(tmp_path):
    lm = tiny("llama")
    findings = findings_for(lm, [(DOWN, (3, 4), "candidate")])
    done = quantize(load(lm.model, tokenizer()), keep=findings, out=tmp_path / "out", verify=False)
    (line,) = [note for note in done.notes if "nothing is kept" in note]
    assert "none of the 1 super-weight candidates" in line
    assert "is proven (#all means all of them)" in line
    with pytest.raises(StudfinderError, match="none of the 1 super-weight candidates"):
        quantize(load(lm.model, tokenizer()), rebalance=findings, out=tmp_path / "more", verify=False)


def test_one_selection_for_all(tmp_path):
    from studfinder.edits import Selection, meant, selected, zero
    from studfinder.quantizers import hold_out, neurons_of

    findings = findings_for(
        tiny("llama"), [(DOWN, (3, 4), "proven"), (DOWN, (5, 6), "inert"), (DOWN, (7, 8), "candidate")]
    )
    untested = tuple(replace(one, effect=None) if one.col == 8 else one for one in findings.super_weights)
    findings = replace(findings, super_weights=untested)
    for which, cols in (("proven", [4]), ("tested", [4, 6]), ("all", [4, 6, 8])):
        chosen = Selection(findings, which)
        assert [weight.col for weight in meant(chosen)] == cols
        assert [entry.target.entries[0][1] for entry in zero(chosen)] == cols
        assert [one.entries[0][1] for one in hold_out(chosen).entries] == cols
        assert [col for _, col in neurons_of(chosen)] == cols
        (tmp_path / "findings.json").write_text(to_json(findings))
        assert selected(f"{tmp_path}#{which}") == chosen
    assert selected(tmp_path) == selected(findings) == Selection(findings)
    with pytest.raises(StudfinderError, match="there is no selection of findings 'provn'; expected proven"):
        selected(f"{tmp_path}#provn")


def test_an_experiments_own_settings_are_options_and_shown(capsys):
    words = ["experiment", "super-weight/scaling"]
    assert run_cli([*words, "--factors", "0,1.5", "--limit=7", "--dry-run", "--text=proof"]) == 0
    said = capsys.readouterr().out
    assert "limit=7" in said
    assert "factors=0,1.5" in said
    assert "text=proof" in said
    assert run_cli([*words, "--help"]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines() if "--factors" in line]
    assert [words[0] for words in shown] == ["--factors"]
    assert shown[0][-2:] == ["[default:", "0,0.2,0.5,0.8,1.2,1.5,2,3]"]
    for mistake, told in (
        (["--factor", "1"], "super-weight/scaling has no setting 'factor'; expected factors"),
        (["--factors", "much"], "--factors much; expected a number"),
        (["--windows"], "'--windows' is not understood"),
    ):
        assert run_cli([*words, *mistake, "--dry-run"]) == 2
        assert told in capsys.readouterr().err

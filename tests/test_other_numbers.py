"""Numbers that no spike showed, in findings: edits, keep and selections take them as they take super weights."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from scanned import EFFECT, findings_for
from studfinder.edits import Selection, Weights, edited, meant, meant_numbers, parse_edits, zero
from studfinder.errors import StudfinderError
from studfinder.models import LM, check_findings
from studfinder.quantizers import RTN, Scheme, hold_out, quantized
from studfinder.records import Findings, OtherNumber, from_json, to_json, to_plain
from tiny import tiny

GAIN, MATRIX = "model.layers.1.input_layernorm.weight", "model.layers.0.self_attn.q_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
FOUR = Scheme(element="int4", block=16, scale="float32")


def number(lm: LM, name: str, parameter: str, index: tuple[int, ...], **more) -> OtherNumber:
    value = float(lm.model.get_parameter(parameter).detach()[index])
    kind = "gain" if len(index) == 1 else "other weight"
    return OtherNumber(
        name=name, kind=kind, layer=1, parameter=parameter, index=index, value=value, predicted=0.3, error=0.1, **more
    )


@pytest.fixture(scope="module")
def found() -> tuple[LM, Findings]:
    lm = tiny("llama")
    gain = number(lm, "layers.1 input_layernorm[7]", GAIN, (7,), verdict="proven", effect=EFFECT)
    other = number(lm, "layers.0 q_proj[3, 5]", MATRIX, (3, 5), verdict="proven", effect=EFFECT)
    tested = number(lm, "norm[2]", "model.norm.weight", (2,), effect=EFFECT, effect_off=EFFECT, predicted_off=2.0)
    untested = number(lm, "norm[3]", "model.norm.weight", (3,))
    return lm, replace(findings_for(lm, [(DOWN, (3, 4), "proven")]), other_numbers=(gain, other, tested, untested))


def test_which_numbers_are_meant(found) -> None:
    _, findings = found
    (weight,) = findings.proven
    gain, other, tested, untested = findings.other_numbers
    assert meant_numbers(findings) == findings.proven_numbers == (weight, gain, other)
    assert Selection(findings, "tested").numbers == (weight, gain, other, tested)
    assert Selection(findings, "all").numbers == (weight, gain, other, tested, untested)
    assert meant(findings) == Selection(findings).weights == (weight,)
    assert meant_numbers(gain) == (gain,)
    with pytest.raises(StudfinderError, match="no super weights"):
        meant([gain])
    alone = replace(findings, super_weights=(), other_numbers=(untested,))
    with pytest.raises(StudfinderError, match="none of the 0 super-weight candidates and 1 other numbers"):
        meant_numbers(alone)


def test_zero_takes_them_out(found, tmp_path) -> None:
    lm, findings = found
    (tmp_path / "findings.json").write_text(to_json(findings))
    assert parse_edits(lm, f"zero:{tmp_path}") == zero(findings)
    assert zero(findings.other_numbers[0]) == parse_edits(lm, "zero:layers.1 input_layernorm[7]")
    with edited(lm, zero(findings)):
        zeros = [float(lm.model.get_parameter(one.parameter).detach()[one.index]) for one in findings.proven_numbers]
        assert zeros == [0, 0, 0]
    with pytest.raises(StudfinderError, match="OtherNumber says which numbers, not what becomes of them"):
        edited(lm, findings.other_numbers[0])


@pytest.mark.parametrize("given", ["findings", "number", "name", "whole name", "hold_out"])
def test_what_is_kept_keeps_its_value(found, given: str) -> None:
    lm, findings = found
    other = findings.other_numbers[1]
    keep = {
        "findings": findings,
        "number": other,
        "name": "layers.0 q_proj[3, 5]",
        "whole name": f"{MATRIX}[3, 5]",
        "hold_out": hold_out(["layers.0 q_proj[3, 5]", Weights(parameter=DOWN, entries=((0, 0),))]),
    }[given]
    before = lm.model.get_parameter(MATRIX).detach().clone()
    with quantized(lm, RTN(scheme=FOUR), keep=keep):
        after = lm.model.get_parameter(MATRIX).detach()
        assert after[3, 5] == before[3, 5]
        assert int((after == before).sum()) < after.numel() / 4


def test_what_cannot_be_kept_is_said(found) -> None:
    lm, _ = found
    with pytest.raises(StudfinderError, match="is not quantised"), quantized(lm, RTN(scheme=FOUR), keep="norm[3]"):
        pass
    with (
        pytest.raises(StudfinderError, match="expected q_proj"),
        quantized(lm, RTN(scheme=FOUR), keep="layers.0 qproj[3, 5]"),
    ):
        pass


def test_they_are_held_against_the_model(found) -> None:
    lm, findings = found
    check_findings(lm, findings)
    gain = findings.other_numbers[0]
    for wrong, words in (
        (replace(gain, value=gain.value + 1), "was recorded"),
        (replace(gain, index=(99,)), "is not an index"),
        (replace(gain, layer=9), "no layer 9"),
        (replace(gain, parameter="model.gone"), "no parameter model.gone"),
    ):
        with pytest.raises(StudfinderError, match=words):
            check_findings(lm, replace(findings, other_numbers=(wrong,)))


def test_files_with_and_without_the_list_are_read(found) -> None:
    _, findings = found
    assert from_json(Findings, to_json(findings)) == findings
    plain = to_plain(findings)
    del plain["other_numbers"]
    assert from_json(Findings, json.dumps(plain)) == replace(findings, other_numbers=())
    assert str(findings.other_numbers[0]) == "layers.1 input_layernorm[7]"
    assert "4 other numbers" in repr(findings)


def test_a_proven_number_has_an_effect_and_a_value(found) -> None:
    gain = found[1].other_numbers[0]
    with pytest.raises(ValueError, match="without an effect"):
        replace(gain, effect=None)
    with pytest.raises(ValueError, match="is nan"):
        replace(gain, value=float("nan"))
    assert torch.isfinite(torch.tensor(gain.value))
